"""Commands on bundles: bundle, rebuild."""

import argparse
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klsweep.commands.analysis import add_choice, choice_of
from klsweep.commands.parser import FAILED, OK, Commands, existing_sweep
from klsweep.errors import BadInput
from klsweep.terminal import print_grid, progress

if TYPE_CHECKING:
    from klsweep.analysis.outputs import Choice
    from klsweep.bundle.manifest import Manifest
    from klsweep.bundle.names import Names
    from klsweep.bundle.rebuild import Output
    from klsweep.record.folder import SweepFolder


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    text = "pack sweeps' records and code with the tables and figures made of them, so that others can make them again"
    bundle = commands.add("bundle", _bundle, text)
    bundle.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="sweep folders, also read-only ones")
    bundle.add_argument("out", type=Path, metavar="OUT", help="what to write: FILE.tar.gz, FILE.zip or a folder")
    text = "without users, hosts, paths, addresses, accounts and job names, nor what processes printed"
    bundle.add_argument("--anonymous", action="store_true", help=text)
    text = "with --anonymous: a further name that nothing may say"
    bundle.add_argument("--strip", nargs="+", action="extend", default=[], metavar="NAME", help=text)
    bundle.add_argument("--force", action="store_true", help="replace a bundle that is there")
    bundle.add_argument("--json", action="store_true", help="print JSON: where, its digest, what is in it")
    add_choice(bundle)
    text = "check a bundle, make its tables and figures again from its records, and compare them byte for byte"
    rebuild = commands.add("rebuild", _rebuild, text)
    rebuild.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `klsweep bundle` wrote, also read-only")
    text = "a new folder for the bundle's files and, in rebuilt/, what was made again (default: nothing is kept)"
    rebuild.add_argument("--into", type=Path, metavar="DIR", help=text)
    rebuild.add_argument("--json", action="store_true", help="print JSON: each file and where it differs, versions")


def _bundle(options: argparse.Namespace) -> int:
    from klsweep.analysis.collect import sweep_names
    from klsweep.bundle.archive import form_of, write_archive
    from klsweep.bundle.contents import names_in
    from klsweep.bundle.manifest import MANIFEST

    sweeps = sweep_names([existing_sweep(path) for path in options.sweeps])
    out, names = options.out, None
    form = form_of(out)
    _check_place(out, form, options.force)
    if options.strip and not options.anonymous:
        raise BadInput(f"--strip {' '.join(options.strip)}: goes with --anonymous")
    if options.anonymous:
        with progress("looking for names") as on_step:
            names = names_in(sweeps, options.strip, on_step)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as folder:
        root = Path(folder) / "files"
        manifest = _made(root, sweeps, choice_of(options), names)
        if form:
            with progress("packing") as on_step:
                write_archive(root, [MANIFEST, *manifest.files], out, on_step)
        else:
            if out.exists():
                shutil.rmtree(out)
            root.rename(out)
    _print_bundle(options, manifest, names)
    return OK


def _check_place(out: Path, form: str, force: bool) -> None:
    from klsweep.bundle.manifest import MANIFEST

    if not (folder := out.absolute().parent).is_dir() or not os.access(folder, os.W_OK):
        raise BadInput(f"{out}: {out.parent} is no folder that can be written to")
    if out.exists() and not force:
        raise BadInput(f"{out}: is there already (--force replaces a bundle)")
    if out.exists() and not (out / MANIFEST if not form else out).is_file():
        raise BadInput(f"{out}: is there already, and no bundle that could be replaced")


def _made(root: Path, sweeps: "Mapping[str, SweepFolder]", choice: "Choice", names: "Names | None") -> "Manifest":
    """Everything that goes into a bundle, in `root`. BadInput if anything there still says one of `names`."""
    from klsweep.analysis.outputs import write_outputs
    from klsweep.bundle.contents import pack
    from klsweep.bundle.manifest import MANIFEST, RECORDS, manifest_of

    with progress("copying records") as on_step:
        notes = pack(sweeps, root, names, on_step)
    folders = [f"{RECORDS}/{name}" for name in sweeps]
    if names is not None:
        _check_clean(root, _files(root), names)
        folders, notes = list(map(names.hidden, folders)), list(map(names.hidden, notes))
        choice = _choice(json.loads(names.hidden(json.dumps(asdict(choice)))))
    with progress("drawing") as on_step:
        made = write_outputs(root, folders, choice, root, on_step)
    outputs = {file: shlex.join(command) for file, command in made.items()}
    facts = {"anonymous": names is not None, "sweeps": folders, "choice": asdict(choice), "notes": notes}
    manifest = manifest_of(root, _files(root), outputs=outputs, **facts)
    (root / MANIFEST).write_text(manifest.text(), "utf-8")
    if names is not None:
        _check_clean(root, [MANIFEST, *outputs], names)
    return manifest


def _choice(content: dict[str, Any]) -> "Choice":
    """A choice from a manifest. BadInput if it is none."""
    from pydantic import TypeAdapter, ValidationError

    from klsweep.analysis.outputs import Choice

    try:
        return TypeAdapter(Choice).validate_python(content)
    except ValidationError as error:
        raise BadInput(f"MANIFEST.json: choice: {error.errors()[0]['msg']}") from error


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _check_clean(root: Path, files: Sequence[str], names: "Names") -> None:
    with progress("looking for names that are left") as on_step:
        for done, file in enumerate(files, 1):
            if found := names.left_in(file, (root / file).read_bytes()):
                raise BadInput(f"--anonymous: {file} would still say {found}; nothing was written")
            on_step(done, len(files))


def _print_bundle(options: argparse.Namespace, manifest: "Manifest", names: "Names | None") -> None:
    size = sum(entry.bytes for entry in manifest.files.values())
    ordinary = sorted(names.ordinary) if names is not None else []
    if options.json:
        found = {"bundle": str(options.out), "digest": manifest.digest, "files": len(manifest.files), "bytes": size}
        found |= {"outputs": list(manifest.outputs), "notes": manifest.notes, "only_in_fields_and_paths": ordinary}
        print(json.dumps(found, indent=1))
        return
    print(f"{options.out}: {len(manifest.files)} files, {size / 2**20:.1f} MiB, digest {manifest.digest}")
    for note in manifest.notes:
        print(f"note: {note}")
    if ordinary:
        print(f"note: words of klsweep's own, too, so replaced in fields and paths alone: {', '.join(ordinary)}")


def _rebuild(options: argparse.Namespace) -> int:
    from klsweep.analysis.outputs import write_outputs
    from klsweep.bundle.archive import unpacked
    from klsweep.bundle.rebuild import held_against

    bundle, into = options.bundle, options.into
    if not bundle.exists():
        raise BadInput(f"{bundle}: no bundle there (`klsweep bundle` makes one)")
    if into is not None and (into.exists() or not os.access(into.absolute().parent, os.W_OK)):
        raise BadInput(f"--into={into}: expected a new folder, in one that can be written to")
    with ExitStack() as stack:
        with progress("checking") as on_step:
            root, manifest = stack.enter_context(unpacked(bundle, into, on_step))
        target = Path(stack.enter_context(tempfile.TemporaryDirectory())) if into is None else into / "rebuilt"
        with progress("drawing") as on_step:
            made = write_outputs(root, manifest.sweeps, _choice(manifest.choice), target, on_step)
        outputs = list(held_against(root, manifest, target, made))
    _print_rebuilt(options, manifest, outputs)
    return FAILED if any(output.difference for output in outputs) else OK


def _print_rebuilt(options: argparse.Namespace, manifest: "Manifest", outputs: "list[Output]") -> None:
    versions = manifest.differing_versions()
    differ = sum(output.difference is not None for output in outputs)
    if options.json:
        rows = [{"file": o.file, "same": o.difference is None, "difference": o.difference} for o in outputs]
        found = {"digest": manifest.digest, "anonymous": manifest.anonymous, "notes": manifest.notes}
        print(json.dumps({**found, "outputs": rows, "versions_that_differ": versions}, indent=1))
        return
    print_grid(["file", "result"], [[o.file, f"differs, {o.difference}" if o.difference else "same"] for o in outputs])
    for note in manifest.notes:
        print(f"note: {note}")
    if differ and versions:
        print(f"{differ} of {len(outputs)} differ; likely because of other versions: {'; '.join(versions)}")
    elif differ:
        print(f"{differ} of {len(outputs)} differ, though made by the same versions")
    else:
        print(f"all {len(outputs)} are the same, byte for byte; digest {manifest.digest}")
