"""From a name to a file: mirrors, cache, checksums and refusals, against a server in this process."""

import base64
import hashlib
import http.client
import http.server
import json
import os
import threading
import time
import urllib.request

import pytest

from vitjax.errors import UserError
from vitjax.weights import cache, download
from vitjax.weights.resolve import HUB, OFFICIAL, default_mirrors, resolve

B_16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
WEIGHTS = bytes(range(256)) * 9000  # more than two chunks
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
MD5 = base64.b64encode(hashlib.md5(WEIGHTS).digest()).decode()


class Server(http.server.ThreadingHTTPServer):
    """Answers a path with what `answers` has for it: bytes, a status or a function of the request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path.partition("?")[0], 404)
        if callable(answer):
            answer(self)
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            send(self, answer)

    def log_message(self, *args):
        pass


def send(request, body, length=None, status=200, **headers):
    request.send_response(status)
    request.send_header("Content-Length", len(body) if length is None else length)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(download, "GOOGLE_STORAGE", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "*")
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A cache of the test's own, no mirrors from outside, and little patience."""
    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VITJAX_WEIGHTS_MIRRORS", raising=False)
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(download, "TIMEOUT", 5.0)


def in_cache(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def refusal(source, **kwargs):
    with pytest.raises(UserError) as error:
        resolve(source, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_on_this_machine_is_taken_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "w.npz"
    file.write_bytes(WEIGHTS)
    assert resolve(str(file)) == file
    assert resolve(file.parent) == file.parent
    assert resolve("~/run/w.npz") == file
    assert resolve(f"{file}#sha256={SHA256.upper()}") == file
    assert f"not the expected {'0' * 64}" in refusal(f"{file}#sha256={'0' * 64}")
    assert "only a file has a checksum" in refusal(f"{file.parent}#sha256={SHA256}")
    assert "64 hexadecimal digits, not 'abc'" in refusal(f"{file}#sha256=abc")
    for missing in (str(tmp_path / "missing.npz"), "", "~no_such_user/w.npz", "w" * 5000, "w\0.npz"):
        assert "there is no such file" in refusal(missing)
    assert "Did you mean 'augreg:vit_b16'" in refusal("vit_b16")
    assert f"Did you mean 'augreg:{B_16}.npz'" in refusal(f"{B_16}.npz")


@pytest.mark.parametrize(
    "name", ["augreg:vit_b16", f"augreg:{B_16}", "howto-i21k-B/16", f"{OFFICIAL}/{B_16}.npz"]
)
def test_every_name_of_a_run_leads_to_its_file(name, tmp_path):
    (tmp_path / f"{B_16}.npz").write_bytes(WEIGHTS)
    assert resolve(name, mirrors=[tmp_path]) == tmp_path / f"{B_16}.npz"


def test_the_official_address_over_https_is_a_run_as_well(tmp_path):
    (tmp_path / f"{B_16}.npz").write_bytes(WEIGHTS)
    address = f"https://storage.googleapis.com/vit_models/augreg/{B_16}.npz"
    assert resolve(address, mirrors=[tmp_path]) == tmp_path / f"{B_16}.npz"


def test_a_misspelt_run_asks_nobody(server):
    assert "Did you mean 'vit_b16'" in refusal("augreg:vit_b61", mirrors=[server.url])
    assert not server.asked


def test_mirrors_are_tried_in_order(tmp_path, server):
    server.answers = {f"/second/{B_16}.npz": b"second", f"/third/{B_16}.npz": b"third"}
    (tmp_path / "empty").mkdir()
    mirrors = [tmp_path / "empty", f"{server.url}/first", f"{server.url}/second/", f"{server.url}/third"]
    found = resolve("augreg:vit_b16", mirrors=mirrors)
    assert found.read_bytes() == b"second" and found.name == f"{B_16}.npz"
    assert f"/first/{B_16}.npz" in server.asked and f"/third/{B_16}.npz" not in server.asked


def test_the_environment_names_mirrors(monkeypatch):
    assert default_mirrors() == [OFFICIAL, HUB]
    monkeypatch.setenv("VITJAX_WEIGHTS_MIRRORS", "/a:~/b,gs://c/d:s3://e, https://f:8080/g,https://h:1:/i,")
    own = ["/a", "~/b", "gs://c/d", "s3://e", "https://f:8080/g", "https://h:1", "/i"]
    assert default_mirrors() == [*own, OFFICIAL, HUB]


def test_what_was_fetched_is_kept_and_used_offline(tmp_path, server):
    server.answers[f"/{B_16}.npz"] = WEIGHTS
    found = resolve("augreg:vit_b16", mirrors=[server.url])
    assert found == tmp_path / "cache" / "weights" / "augreg" / f"{B_16}.npz"
    assert found.read_bytes() == WEIGHTS
    record = json.loads((found.parent / f"{found.name}.json").read_text())
    assert record["sha256"] == SHA256 and record["source"] == f"{server.url}/{B_16}.npz"
    assert in_cache(tmp_path) == [f"{B_16}.npz", f"{B_16}.npz.json"]
    asked = len(server.asked)
    assert resolve("augreg:vit_b16", mirrors=[server.url]) == found
    assert resolve("augreg:vit_b16", mirrors=[]) == found
    assert resolve("augreg:vit_b16", mirrors=[], cache=tmp_path / "cache" / "weights") == found
    assert len(server.asked) == asked


def test_a_kept_file_is_hashed_again_only_when_touched(server, monkeypatch):
    server.answers[f"/{B_16}.npz"] = WEIGHTS
    found = resolve("augreg:vit_b16", mirrors=[server.url])
    hashed = []
    monkeypatch.setattr(
        cache, "sha256", lambda path, sha256=cache.sha256: hashed.append(path) or sha256(path)
    )
    resolve("augreg:vit_b16", mirrors=[])
    assert not hashed
    os.utime(found, (1, 1))
    for _ in range(2):
        assert resolve("augreg:vit_b16", mirrors=[]) == found
    assert hashed == [found]  # the second time the new modification time was on record


def test_a_damaged_copy_is_fetched_anew_and_never_used(server):
    server.answers[f"/{B_16}.npz"] = WEIGHTS
    found = resolve("augreg:vit_b16", mirrors=[server.url])
    os.utime(found, (1, 1))
    found.write_bytes(WEIGHTS[:-1] + b"!")
    message = refusal("augreg:vit_b16", mirrors=[])
    assert "has changed since it was fetched" in message and str(found) in message
    assert resolve("augreg:vit_b16", mirrors=[server.url]).read_bytes() == WEIGHTS
    time_of = found.stat()
    found.write_bytes(WEIGHTS[:-1])
    os.utime(found, ns=(time_of.st_atime_ns, time_of.st_mtime_ns))
    assert resolve("augreg:vit_b16", mirrors=[server.url]).read_bytes() == WEIGHTS


def test_a_file_without_a_readable_record_is_taken_as_it_is(server, tmp_path):
    found = tmp_path / "cache" / "weights" / "augreg" / f"{B_16}.npz"
    found.parent.mkdir(parents=True)
    found.write_bytes(WEIGHTS)
    (found.parent / f"{B_16}.npz.json").write_text("{")
    assert resolve(f"augreg:vit_b16#sha256={SHA256}", mirrors=[]) == found
    assert json.loads((found.parent / f"{B_16}.npz.json").read_text())["sha256"] == SHA256


def test_a_refusal_lists_every_mirror_with_its_reason(tmp_path, server, monkeypatch):
    server.answers[f"/vit_models/augreg/{B_16}.npz"] = 403
    server.answers["/own/SHA256SUMS"] = 403
    (tmp_path / "empty").mkdir()
    own = f"{tmp_path}/empty,{tmp_path}/none,{server.url}/own,http://127.0.0.1:1/x,memory://nowhere,odd://x"
    monkeypatch.setenv("VITJAX_WEIGHTS_MIRRORS", own)
    message = refusal("augreg:vit_b16")
    for line in (
        f"'augreg:vit_b16' is the file '{B_16}.npz', and none of 8 mirrors gives it.",
        f"(1) {tmp_path}/empty: the folder has no file of that name;",
        f"(2) {tmp_path}/none: there is no such folder;",
        f"(3) {server.url}/own: 404 Not Found;",
        "(4) http://127.0.0.1:1/x: Connection refused;",
        "(5) memory://nowhere: there is no such file;",
        "(6) odd://x: Protocol not known: odd;",
        "(7) gs://vit_models/augreg: 403 Forbidden (the bucket has refused anonymous readers since 2026-02);",
        "(8) hf://timm: 404 Not Found.",
        "set VITJAX_WEIGHTS_MIRRORS to the folder",
        "give the path of a file in place of 'augreg:vit_b16'.",
    ):
        assert line in message
    assert in_cache(tmp_path) == []


def test_a_library_that_is_missing_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    broken = {"class": "not_installed_here.Fs", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "s3", broken)
    assert "(1) s3://bucket: Install s3fs to access S3" in refusal("augreg:vit_b16", mirrors=["s3://bucket"])


def test_the_hub_gives_the_run_itself_or_nothing(server):
    repository = "/timm/vit_base_patch16_224.augreg_in21k/resolve/main/model.safetensors"
    server.answers[repository] = WEIGHTS
    found = resolve("augreg:vit_b16", mirrors=[HUB])
    assert found.name == f"{B_16}.safetensors" and found.read_bytes() == WEIGHTS
    assert resolve("augreg:vit_b16", mirrors=[]) == found
    server.asked.clear()
    message = refusal("augreg:vit_b32", mirrors=[HUB])  # timm has B/32, but of another recipe
    assert "timm does not re-host this run" in message
    assert "augreg:B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0," in message
    assert not server.asked


def test_addresses_on_the_hub_and_in_buckets(server):
    server.answers["/org/repo/resolve/main/w.npz"] = b"main"
    server.answers["/org/repo/resolve/v1/dir/w.npz"] = b"v1"
    server.answers["/bucket/dir/w.npz"] = b"bucket"
    server.answers["/plain/w.npz"] = b"plain"
    found = {
        name: resolve(name)
        for name in (
            "hf://org/repo/w.npz",
            "hf://org/repo@v1/dir/w.npz",
            "gs://bucket/dir/w.npz",
            f"{server.url}/plain/w.npz",
            f"{server.url}/plain/w.npz?sig=1",
        )
    }
    assert [path.read_bytes() for path in found.values()] == [b"main", b"v1", b"bucket", b"plain", b"plain"]
    assert len(set(found.values())) == 5 and all(path.name == "w.npz" for path in found.values())
    signed = found[f"{server.url}/plain/w.npz?sig=1"]
    assert json.loads(signed.with_name("w.npz.json").read_text())["source"] == f"{server.url}/plain/w.npz"
    server.answers.clear()
    assert {name: resolve(name) for name in found} == found
    assert "hf://ORGANISATION/REPOSITORY/FILE" in refusal("hf://org/w.npz")
    message = refusal(f"{server.url}/gone.npz?signature=secret")
    assert "404 Not Found" in message and "secret" not in message


@pytest.mark.parametrize(
    "url", ["http://host/..", "http://host/a/", "http://host/.?x=/../../y", "http://host"]
)
def test_an_address_without_a_file_name_stays_inside_the_cache(url, tmp_path):
    path = cache.place(url, tmp_path)
    assert path.parent.parent == tmp_path / "urls" and path.name in ("file", "host")


def test_what_fsspec_opens_is_a_mirror_too(tmp_path):
    import fsspec

    with fsspec.open(f"memory://mirror/{B_16}.npz", "wb") as f:
        f.write(WEIGHTS)
    assert resolve("augreg:vit_b16", mirrors=["memory://mirror"]).read_bytes() == WEIGHTS
    assert "it is a folder, not a file" in refusal("memory://mirror")


def test_a_transfer_that_breaks_off_is_tried_again(server, tmp_path):
    tries = []

    def answer(request):
        tries.append(1)
        send(request, WEIGHTS if len(tries) == 3 else WEIGHTS[:-1], length=len(WEIGHTS))
        request.close_connection = True

    server.answers["/w.npz"] = answer
    assert resolve(f"{server.url}/w.npz").read_bytes() == WEIGHTS
    assert len(tries) == 3

    tries.extend("more")
    message = refusal(f"{server.url}/w.npz?again")
    assert f"the transfer ended after {len(WEIGHTS) - 1} of {len(WEIGHTS)} bytes" in message
    assert len(tries) == 10
    assert in_cache(tmp_path) == ["w.npz", "w.npz.json"]  # of the first time


def test_a_busy_server_is_tried_again_and_a_refusal_is_not(server):
    server.answers = {"/busy": 503, "/closed": 403}
    assert "503 Service Unavailable" in refusal(f"{server.url}/busy")
    assert "403 Forbidden" in refusal(f"{server.url}/closed")
    assert server.asked == ["/busy"] * 3 + ["/closed"]


def test_a_silent_server_is_given_up(server, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    done = threading.Event()

    def stall(request):
        send(request, WEIGHTS[:1000], length=len(WEIGHTS))
        done.wait(10)

    server.answers = {"/mute": lambda request: done.wait(10), "/stalls": stall}
    start = time.monotonic()
    try:
        assert "no answer for 0.1 seconds" in refusal(f"{server.url}/mute")
        message = refusal(f"{server.url}/stalls")
        assert f"the transfer ended after 0 of {len(WEIGHTS)} bytes (no answer for 0.1 seconds)" in message
        assert time.monotonic() - start < 5
        # A mirror that does not answer for its checksums is not asked for the file.
        server.answers = {"/mirror/SHA256SUMS": lambda request: done.wait(10)}
        server.asked.clear()
        assert "no answer for 0.1 seconds" in refusal("augreg:vit_b16", mirrors=[f"{server.url}/mirror"])
        assert server.asked == ["/mirror/SHA256SUMS"]
        server.answers = {"/mirror/SHA256SUMS": stall}
        assert "no answer for 0.1 seconds" in refusal("augreg:vit_b16", mirrors=[f"{server.url}/mirror"])
    finally:
        done.set()
    assert in_cache(tmp_path) == []


def test_a_web_page_is_no_file(server):
    server.answers["/w.npz"] = lambda request: send(request, b"<html>log in</html>", Content_Type="text/html")
    assert "the answer is a web page, not a file" in refusal(f"{server.url}/w.npz")


def test_the_md5_of_google_storage_is_checked(server, tmp_path):
    good = f"crc32c=AAAAAA==,md5={MD5}"
    server.answers["/b/good.npz"] = lambda request: send(request, WEIGHTS, x_goog_hash=good)
    server.answers["/b/bad.npz"] = lambda request: send(request, WEIGHTS[::-1], x_goog_hash=good)
    assert resolve("gs://b/good.npz").read_bytes() == WEIGHTS
    assert "another MD5 than the server says" in refusal("gs://b/bad.npz")
    assert in_cache(tmp_path) == ["good.npz", "good.npz.json"]


def test_the_sha256_of_the_hub_is_checked_through_its_redirect(server, tmp_path):
    def redirect(to):
        return lambda request: send(request, b"", status=302, Location=to, X_Linked_Etag=f'"{SHA256}"')

    server.answers["/o/r/resolve/main/good.npz"] = redirect(f"{server.url}/storage/good")
    server.answers["/o/r/resolve/main/bad.npz"] = redirect(f"{server.url}/storage/bad")
    server.answers["/o/r/resolve/main/ftp.npz"] = redirect("ftp://127.0.0.1/w.npz")
    server.answers |= {"/storage/good": WEIGHTS, "/storage/bad": WEIGHTS[::-1]}
    assert resolve("hf://o/r/good.npz").read_bytes() == WEIGHTS
    assert "another SHA-256 than the server says" in refusal("hf://o/r/bad.npz")
    assert "redirects to ftp://127.0.0.1/w.npz, which is not https" in refusal("hf://o/r/ftp.npz")
    assert in_cache(tmp_path) == ["good.npz", "good.npz.json"]


def test_a_redirect_never_leaves_https():
    request = urllib.request.Request("https://host/w.npz")
    headers = http.client.HTTPMessage()
    follow = download._Redirects().redirect_request
    assert (
        follow(request, None, 302, "Found", headers, "https://other/w.npz").full_url == "https://other/w.npz"
    )
    with pytest.raises(download.Refused, match=r"redirects to http://other/w\.npz, which is not https"):
        follow(request, None, 302, "Found", headers, "http://other/w.npz?signature=secret")


def test_a_bucket_closed_to_all_is_asked_again_with_ones_own_credentials(server, monkeypatch):
    from fsspec.registry import known_implementations

    server.answers["/closed/w.npz"] = 403
    assert "could not be fetched: 403 Forbidden. " in refusal("gs://closed/w.npz")
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: name == "gcsfs")
    monkeypatch.setitem(known_implementations, "gs", {"class": "not_here.Fs", "err": "no credentials"})
    assert "could not be fetched: 403 Forbidden; no credentials. " in refusal("gs://closed/w.npz")


def test_an_expected_checksum_passes_over_mirrors_with_another_file(server):
    server.answers = {f"/bad/{B_16}.npz": WEIGHTS[::-1], f"/good/{B_16}.npz": WEIGHTS}
    bad, good = f"{server.url}/bad", f"{server.url}/good"
    assert resolve("augreg:vit_b16", mirrors=[bad, good]).read_bytes() == WEIGHTS[::-1]
    # The copy in the cache is another file, too.
    message = refusal(f"augreg:vit_b16#sha256={SHA256}", mirrors=[bad])
    assert f"not {SHA256}" in message and "has another SHA-256" in message
    assert resolve(f"augreg:vit_b16#sha256={SHA256}", mirrors=[bad, good]).read_bytes() == WEIGHTS
    server.answers["/w.npz"] = WEIGHTS[::-1]
    assert f"not {SHA256}" in refusal(f"{server.url}/w.npz#sha256={SHA256}")
    resolve(f"{server.url}/w.npz")
    assert "has another SHA-256" in refusal(f"{server.url}/w.npz#sha256={SHA256}")


@pytest.mark.parametrize("where", ["folder", "server"])
def test_the_checksums_of_a_mirror_are_held(where, server, tmp_path):
    sums = f"{'0' * 64}  other.npz\n{SHA256} *{B_16}.npz\n"
    for folder, content in (("bad", WEIGHTS[::-1]), ("good", WEIGHTS)):
        for name, data in ((f"{B_16}.npz", content), ("SHA256SUMS", sums.encode())):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(data)
            server.answers[f"/{folder}/{name}"] = data
    at = server.url if where == "server" else tmp_path
    assert f"not {SHA256}" in refusal("augreg:vit_b16", mirrors=[f"{at}/bad"])
    assert resolve("augreg:vit_b16", mirrors=[f"{at}/bad", f"{at}/good"]).read_bytes() == WEIGHTS


def test_two_that_fetch_at_once_do_no_harm(server, tmp_path):
    both = threading.Barrier(2, timeout=10)

    def answer(request):
        both.wait()  # both are in the middle of it
        send(request, WEIGHTS)

    server.answers["/w.npz"] = answer
    found = []
    threads = [threading.Thread(target=lambda: found.append(resolve(f"{server.url}/w.npz"))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2 and found[0] == found[1] and found[0].read_bytes() == WEIGHTS
    assert in_cache(tmp_path) == ["w.npz", "w.npz.json"]
    assert cache.kept(found[0]) == SHA256


def test_what_a_killed_process_left_is_cleared_away(server, tmp_path):
    server.answers["/w.npz"] = WEIGHTS
    found = resolve(f"{server.url}/w.npz")
    old, young = (found.parent / f".w.npz.1.{name}.part" for name in ("old", "young"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))
    found.unlink()
    assert resolve(f"{server.url}/w.npz") == found
    assert young.exists() and not old.exists()


def test_a_cache_that_cannot_be_written_is_said_so(server, tmp_path):
    server.answers["/w.npz"] = WEIGHTS
    (tmp_path / "file").write_bytes(b"")
    message = refusal(f"{server.url}/w.npz", cache=tmp_path / "file")
    assert "Cannot keep fetched weights" in message and "VITJAX_CACHE" in message


def test_a_long_transfer_shows_a_line_on_a_terminal_only(monkeypatch, capsys):
    clock = iter([0.0, 0.5, 1.5, 1.6, 1.6, 2.0, 2.0])
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with download._Progress("w.npz", 4_000_000) as progress:
        for megabytes in (1, 2):
            progress.show(megabytes * 1_000_000)
    assert capsys.readouterr().err == "\rw.npz: 2 of 4 MB, 50%\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with download._Progress("w.npz", 4_000_000) as progress:
        progress.show(4_000_000)
    assert capsys.readouterr().err == ""
