"""Archives as tar has them: files and folders, and nothing else."""

import os
import posixpath
import shutil
import tarfile

MAX_FILES = 100_000


def pack(f, things):
    """Writes files and folders, each under its target; gives the size."""
    with tarfile.open(fileobj=f, mode="w", dereference=True) as tar:
        for local, target in things:
            tar.add(os.path.realpath(local), target, filter=lambda m: m if m.isfile() or m.isdir() else None)
    return f.tell()


def unpack(f, folder, declared):
    """Takes the declared outputs out of a tar, within the folder: of one that is cut off, what there is, before it fails."""
    asked = [posixpath.normpath(d) for d in declared]
    links = {}
    with tarfile.open(fileobj=f, mode="r:") as tar:
        for n, m in enumerate(tar):
            if n > MAX_FILES:
                raise tarfile.TarError(f"there are more than {MAX_FILES} files")
            name = posixpath.normpath(m.name)
            wanted = any(d == "." or name == d or name.startswith(d + "/") for d in asked)
            if wanted and (m.isfile() or m.isdir()):
                m.mode = m.mode & 0o755 | (0o700 if m.isdir() else 0o600)
                tar.extract(m, folder, set_attrs=True, filter="data")
            elif wanted and m.issym() and not m.linkname.startswith("/"):
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), m.linkname))
    for name, to in links.items():  # files in the place of links to them
        if to.startswith("../") or not os.path.isfile(os.path.join(folder, to)):
            continue
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        shutil.copy(os.path.join(folder, to), os.path.join(folder, name), follow_symlinks=False)
