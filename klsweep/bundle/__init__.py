"""A sweep's records, code, tables and figures as one archive that can be checked and made again."""
