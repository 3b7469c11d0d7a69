"""Commands that read or write files of this machine: imports, exports, backups."""
