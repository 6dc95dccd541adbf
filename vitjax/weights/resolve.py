"""From what a user writes to a file on this machine.

    ~/weights/B_16.npz, runs/b16              a file or folder: it is taken where it lies
    augreg:vit_b16, howto-i21k-B/16           a recommended run of the AugReg collection
    augreg:B_16-i21k-300ep-lr_0.001-...       any run of it, pre-trained or fine-tuned (`augreg_collection`)
    gs://bucket/file.npz, s3://..., https://...
    hf://org/repo/model.safetensors           a file on the Hugging Face hub

Any of them may end in `#sha256=HEX`; a file with another checksum is then refused.

Runs of the collection are looked for in the cache, then in the mirrors of `$VITJAX_WEIGHTS_MIRRORS` (local
folders and buckets that hold the `.npz` files under their published names; separated by commas, or as in
`$PATH`), then in the official bucket, which has refused anonymous readers since February 2026, then on the
Hugging Face hub, where timm keeps some runs in PyTorch's layout. A mirror may hold a file `SHA256SUMS`,
as `sha256sum *.npz` writes it. What is in the cache is used without asking anybody.
"""

import os
import pathlib
import re
from collections.abc import Sequence

from vitjax.errors import UserError
from vitjax.weights import augreg_collection, download
from vitjax.weights import cache as cache_lib
from vitjax.weights.augreg_collection import Run
from vitjax.weights.download import Refused

MIRRORS = "VITJAX_WEIGHTS_MIRRORS"
OFFICIAL = "gs://vit_models/augreg"
HUB = "hf://timm"


def resolve(
    source: str | os.PathLike,
    *,
    mirrors: Sequence[str | os.PathLike] | None = None,
    cache: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Returns the local file or folder that `source` names; fetches it if it is not on this machine yet.

    Args:
      source: see the head of this module.
      mirrors: where to look for runs of the AugReg collection, in order; by default `default_mirrors()`.
      cache: where to keep what was fetched; by default `vitjax.weights.cache.folder()`.

    A file that is not there or cannot be had is a UserError that lists what was tried.
    """
    kept_in = pathlib.Path(cache).expanduser() if cache else cache_lib.folder()
    name, expected = _split_checksum(os.fspath(source))
    run = _run_of_the_collection(name)
    if run:
        places = default_mirrors() if mirrors is None else [os.fspath(mirror) for mirror in mirrors]
        return _from_mirrors(name, run, places, kept_in / "augreg", expected)
    if "://" in name:
        return _from_url(name, kept_in, expected)
    return _local(name, expected)


def default_mirrors() -> list[str]:
    """Those of `$VITJAX_WEIGHTS_MIRRORS`, the official bucket and the hub."""
    # A colon inside an address, before // or a port, separates nothing.
    own = re.split(rf",|{re.escape(os.pathsep)}(?!//|\d+(?:[/,:]|$))", os.environ.get(MIRRORS, ""))
    return [*filter(None, map(str.strip, own)), OFFICIAL, HUB]


def _split_checksum(source: str) -> tuple[str, str | None]:
    name, separator, digest = source.rpartition("#sha256=")
    if not separator:
        return source, None
    if not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise UserError(f"{source!r}: what follows #sha256= must be 64 hexadecimal digits, not {digest!r}.")
    return name, digest.lower()


def _run_of_the_collection(name: str) -> Run | None:
    """The run that `augreg:`, a name of big_vision's or an address in the official bucket means, if any."""
    if name.startswith("augreg:"):
        return augreg_collection.find(name.removeprefix("augreg:"))
    if name.startswith("howto-"):
        return augreg_collection.find(name)
    for bucket in (OFFICIAL, OFFICIAL.replace("gs://", f"{download.GOOGLE_STORAGE}/")):
        if name.startswith(f"{bucket}/") and name.endswith(".npz"):
            return augreg_collection.find(name.removeprefix(f"{bucket}/"))
    return None


def _local(name: str, expected: str | None) -> pathlib.Path:
    path = pathlib.Path(os.path.expanduser(name))
    if not name or not os.path.exists(path):
        raise UserError(f"{name!r}: there is no such file or folder.{_meant(name)}")
    if expected:
        if not path.is_file():
            raise UserError(f"{name!r} is a folder; only a file has a checksum.")
        found = cache_lib.sha256(path)
        if found != expected:
            raise UserError(f"{name!r} has the SHA-256 {found}, not the expected {expected}.")
    return path


def _meant(name: str) -> str:
    try:
        augreg_collection.find(name)
    except UserError:
        return ""
    return f" Did you mean 'augreg:{name}'?"


def _from_url(url: str, kept_in: pathlib.Path, expected: str | None) -> pathlib.Path:
    path = cache_lib.place(url, kept_in)
    digest = cache_lib.kept(path)
    if not digest or (expected and digest != expected):
        try:
            download.fetch(url, path, sha256=expected)
        except Refused as e:
            shown = download.without_secrets(url)
            raise UserError(
                f"{shown!r} could not be fetched: {e}.{_damaged(path, digest)} Fetch the file by other means "
                "and give its path."
            ) from e
    return path


def _damaged(path: pathlib.Path, digest: str | None) -> str:
    if not path.exists():
        return ""
    state = "has another SHA-256" if digest else "has changed since it was fetched"
    return f" (The copy in the cache, {os.fspath(path)!r}, {state}.)"


def _from_mirrors(
    name: str, run: Run, mirrors: Sequence[str], kept_in: pathlib.Path, expected: str | None
) -> pathlib.Path:
    damaged = ""
    for suffix in (".npz", ".safetensors"):
        path = kept_in / f"{run}{suffix}"
        digest = cache_lib.kept(path)
        if digest and expected in (None, digest):
            return path
        damaged += _damaged(path, digest)
    reasons = []
    for mirror in mirrors:
        try:
            return _from_mirror(mirror, run, kept_in, expected)
        except Refused as e:
            reasons.append(f"({len(reasons) + 1}) {download.without_secrets(mirror)}: {e}")
    raise UserError(
        f"{name!r} is the file '{run}.npz', and none of {len(mirrors)} mirrors gives it. "
        f"{'; '.join(reasons)}.{damaged} "
        f"What to do: put the file into a folder, under that name, and set {MIRRORS} to the folder (or to a "
        f"bucket, gs:// or s3://), or give the path of a file in place of {name!r}."
    )


def _from_mirror(mirror: str, run: Run, kept_in: pathlib.Path, expected: str | None) -> pathlib.Path:
    if mirror == HUB:
        path = kept_in / f"{run}.safetensors"
        download.fetch(f"{HUB}/{_repository(run)}/model.safetensors", path, sha256=expected)
        return path
    if "://" not in mirror:
        return _from_folder(pathlib.Path(os.path.expanduser(mirror)), f"{run}.npz", expected)
    path = kept_in / f"{run}.npz"
    address = mirror.rstrip("/")
    if expected is None and mirror != OFFICIAL:
        expected = _listed(download.text(f"{address}/SHA256SUMS"), path.name)
    try:
        download.fetch(f"{address}/{path.name}", path, sha256=expected)
    except Refused as e:
        if mirror == OFFICIAL and str(e).startswith("403"):
            raise Refused(f"{e} (the bucket has refused anonymous readers since 2026-02)") from e
        raise
    return path


def _from_folder(folder: pathlib.Path, name: str, expected: str | None) -> pathlib.Path:
    path = folder / name
    if not folder.is_dir():
        raise Refused("there is no such folder")
    if not path.is_file():
        raise Refused("the folder has no file of that name")
    sums = folder / "SHA256SUMS"
    if expected is None and sums.is_file():
        expected = _listed(sums.read_text(errors="replace"), name)
    if expected and (found := cache_lib.sha256(path)) != expected:
        raise Refused(f"the file has the SHA-256 {found}, not {expected}")
    return path


def _listed(sums: str | None, name: str) -> str | None:
    """The checksum of a file in the text that `sha256sum` writes: digest, two characters, name."""
    found = re.search(rf"^([0-9a-fA-F]{{64}}) [ *](?:\./)?{re.escape(name)}\s*$", sums or "", re.MULTILINE)
    return found[1].lower() if found else None


def _repository(run: Run) -> str:
    hub = augreg_collection.on_hub()
    if run in hub:
        return hub[run]
    same = [f"augreg:{other}" for other in hub if (other.model, other.data) == (run.model, run.data)]
    instead = f"; of this model it has, to be asked for by name: {', '.join(same)}" if same else ""
    raise Refused(f"timm does not re-host this run{instead}")
