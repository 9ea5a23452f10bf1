"""Results made elsewhere as run folders: a mapping, the files it names, the runs they hold, their folders. No torch."""
