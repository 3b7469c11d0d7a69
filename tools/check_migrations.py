"""Compares the migrations with the models, in a temporary PostgreSQL."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from alembic.util import CommandError

from app.db import migrations
from app.processes.embedded import Embedded
from app.processes.postgres_install import ROOT_BASE


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="illume-check-"))
    folder.chmod(0o711)  # ours; as root PostgreSQL runs as another account and has to pass
    services = Embedded(folder, durable=False, with_redis=False)
    try:
        services.start()
        migrations.upgrade(services.database_url)
        migrations.check(services.database_url)
    except CommandError as error:
        sys.stderr.write(f"The migrations do not make the tables of the models: {error}\n")
        return 1
    finally:
        services.stop()
        if ROOT_BASE in services.base.parents:
            shutil.rmtree(services.base, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
