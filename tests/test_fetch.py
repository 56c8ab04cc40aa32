"""fetch.py against a server on the loopback that cuts, stalls and lies."""

import errno
import io
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from archives import MD5, ZIP, assert_whole, left, make_zip, one_line

import fetch
from cli import Failure, Mistake
from layout import FOLDER

ROOT = Path(fetch.__file__).parent


class Handler(BaseHTTPRequestHandler):
    """Answers with `server.body`; the first of `server.plans`, if any, says how to misbehave."""

    def do_GET(self):
        server, start = self.server, 0
        plan = server.plans.pop(0) if server.plans else dict(server.always)
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        server.arrived.set()
        if "status" in plan:
            return self.send_error(plan["status"])
        if "location" in plan:
            self.send_response(302)
            self.send_header("Location", plan["location"])
            return self.end_headers()
        if asked and plan.get("ranges", True):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            start += plan.get("shift", 0)
            self.send_response(206)
            said = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
            self.send_header("Content-Range", said)
        else:
            self.send_response(200)
        if plan.get("length", True):
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        body = server.body[start:]
        if "cut" in plan:
            body = body[: plan["cut"]]
        server.served += len(body)  # before: the client may be done before we run again
        self.wfile.write(body)
        if plan.get("hang"):  # silent, but not closed
            server.gate.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 10)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.body, server.plans, server.always = ZIP, [], {}
    server.ranges, server.served = [], 0
    server.arrived, server.gate = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/{FOLDER}.zip"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "my data"


def part(data_dir: Path) -> Path:
    return data_dir / f"{FOLDER}.zip.part"


# ---- the download


def test_plain_download(server, data_dir, capsys):
    assert fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5.upper()) == data_dir / FOLDER
    assert_whole(data_dir)
    assert server.ranges == [None] and server.served == len(ZIP)
    assert server.url in capsys.readouterr().out


def test_already_there_asks_nobody(server, data_dir, capsys):
    (data_dir / FOLDER).mkdir(parents=True)
    assert fetch.fetch_tiny_imagenet(data_dir, server.url) == data_dir / FOLDER
    assert server.ranges == [] and left(data_dir) == [FOLDER]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "already there" in out and "python data.py check" in out


@pytest.mark.fault("fetch: download cut")
def test_cut_connection_goes_on_in_the_same_run(server, data_dir):
    server.plans = [{"cut": 70_000}, {"cut": 1_000}, {"status": 503}]
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert server.ranges == [None, "bytes=70000-", "bytes=71000-", "bytes=71000-"]
    assert server.served == len(ZIP)  # not one byte twice


@pytest.mark.fault("fetch: download cut")
@pytest.mark.parametrize("tenth", range(10))
def test_cut_at_every_tenth(server, data_dir, tenth):
    server.plans = [{"cut": len(ZIP) * tenth // 10}]
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert server.served == len(ZIP)


@pytest.mark.fault("fetch: download cut")
def test_more_cuts_than_tries_are_fine_while_something_comes(server, data_dir):
    server.always = {"cut": len(ZIP) // 8}
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert len(server.ranges) > fetch.TRIES and server.served == len(ZIP)


@pytest.mark.fault("fetch: download cut")
def test_cut_for_ever_keeps_the_part_for_the_next_run(server, data_dir):
    server.plans = [{"cut": 50_000}]
    server.always = {"cut": 0}
    with pytest.raises(Failure) as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    message = one_line(info)
    assert server.url in message and "same command" in message
    assert "--url" in message and "--zip" in message
    assert len(server.ranges) == 1 + fetch.TRIES
    assert part(data_dir).read_bytes() == ZIP[:50_000] and left(data_dir) == [part(data_dir).name]
    server.always, before = {}, server.served
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert server.served - before == len(ZIP) - 50_000


@pytest.mark.fault("fetch: download cut")
def test_server_without_ranges_starts_over(server, data_dir):
    server.plans = [{"ranges": False, "cut": 90_000}]
    server.always = {"ranges": False}
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert server.ranges == [None, "bytes=90000-"] and server.served == 90_000 + len(ZIP)


@pytest.mark.fault("fetch: download cut")
def test_server_without_ranges_that_always_cuts_is_given_up(server, data_dir):
    # Now a little further than the time before, now not: never further than the first time.
    server.plans = [{"ranges": False, "cut": cut} for cut in [20_000, 10_000] * 10]
    with pytest.raises(Failure, match="ended early"):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert len(server.ranges) == 1 + fetch.TRIES


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_part_of_another_file_never_gets_mixed_in(server, data_dir):
    data_dir.mkdir()
    part(data_dir).write_bytes(bytes(1_000))
    with pytest.raises(Mistake, match=f"expected md5 {MD5}, got"):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert left(data_dir) == []
    part(data_dir).write_bytes(bytes(1_000))
    with pytest.raises(Mistake):  # without an md5 the archive's own checksums and offsets tell
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=None)
    assert left(data_dir) == []


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_part_longer_than_the_file_is_replaced(server, data_dir):
    data_dir.mkdir()
    part(data_dir).write_bytes(bytes(len(ZIP) + 5))
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)


@pytest.mark.parametrize(
    "md5, requests", [(MD5, []), (None, [f"bytes={len(ZIP)}-"])], ids=["verified", "any"]
)
def test_whole_part_is_not_fetched_again(server, data_dir, md5, requests):
    data_dir.mkdir()
    part(data_dir).write_bytes(ZIP)
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=md5)
    assert_whole(data_dir)
    assert server.ranges == requests and server.served == 0


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_another_range_than_asked_is_not_appended(server, data_dir):
    server.plans = [{"cut": 10_000}, {"shift": 7}]
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=None)
    assert_whole(data_dir)
    assert server.ranges == [None, "bytes=10000-", None]


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_wrong_md5_leaves_nothing(server, data_dir):
    with pytest.raises(Mistake) as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5="0" * 32)
    message = one_line(info)
    assert "0" * 32 in message and MD5 in message and "--md5=none" in message
    assert left(data_dir) == []


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.fault("fetch: wrong file, length or md5")
def test_wrong_size_of_the_official_archive(server, data_dir, monkeypatch, length):
    monkeypatch.setattr(fetch, "OFFICIAL_BYTES", len(ZIP) + 1)
    server.always = {"length": length}
    with pytest.raises(Mistake) as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=fetch.OFFICIAL_MD5)
    assert f"expected {len(ZIP) + 1:,} bytes, got {len(ZIP):,}" in one_line(info)
    assert left(data_dir) == []


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_a_page_of_another_size_does_not_overwrite_a_good_beginning(server, data_dir, monkeypatch):
    monkeypatch.setattr(fetch, "OFFICIAL_BYTES", len(ZIP))
    monkeypatch.setattr(fetch, "OFFICIAL_MD5", MD5)
    data_dir.mkdir()
    part(data_dir).write_bytes(ZIP[:60_000])
    server.body, server.always = b"<html>log in first</html>", {"ranges": False}
    with pytest.raises(Mistake, match="bytes, got 25"):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    server.body, server.always = ZIP, {}
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert server.ranges[-1] == "bytes=60000-"


@pytest.mark.parametrize("code", [403, 404, 410])
@pytest.mark.fault("fetch: server refuses, stalls or is gone")
def test_client_errors_are_final(server, data_dir, code):
    server.always = {"status": code}
    with pytest.raises(Mistake) as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    message = one_line(info)
    assert str(code) in message and server.url in message and "--zip" in message
    assert len(server.ranges) == 1 and left(data_dir) == []


@pytest.mark.parametrize("code", [408, 429, 500, 503])
@pytest.mark.fault("fetch: server refuses, stalls or is gone")
def test_passing_errors_are_tried_again(server, data_dir, code):
    server.plans = [{"status": code}] * (fetch.TRIES - 1)
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    server.plans = [{"status": code}] * fetch.TRIES
    with pytest.raises(Failure, match=str(code)) as info:
        fetch.fetch_tiny_imagenet(data_dir.with_name("other"), server.url, md5=MD5)
    one_line(info)


@pytest.mark.fault("fetch: server refuses, stalls or is gone")
def test_stalled_connection_goes_on(server, data_dir, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.3)
    server.plans = [{"cut": 40_000, "hang": True}]
    start = time.monotonic()
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert time.monotonic() - start < 5
    assert_whole(data_dir)
    assert server.ranges == [None, "bytes=40000-"]


@pytest.mark.fault("fetch: server refuses, stalls or is gone")
def test_connection_kept_open_after_the_last_byte(server, data_dir):
    server.always = {"hang": True}
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert len(server.ranges) == 1


def test_pauses_grow(server, data_dir, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    server.always = {"status": 500}
    with pytest.raises(Failure):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert pauses == [2, 4, 8, 16]


@pytest.mark.fault("fetch: server refuses, stalls or is gone")
def test_nobody_listens(server, data_dir):
    server.shutdown()
    server.server_close()
    with pytest.raises(Failure, match="refused") as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert server.url in one_line(info)


@pytest.mark.fault("fetch: download cut")
def test_ctrl_c_keeps_the_part(server, data_dir, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.time, "sleep", interrupted)
    server.plans = [{"cut": 30_000}]
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert left(data_dir) == [part(data_dir).name]
    assert part(data_dir).read_bytes() == ZIP[:30_000]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x.zip",
        "file:///etc/passwd",
        "x.zip",
        "",
        "http://",
        "http:///x",
        "http://a/b c",
        "http://a/ü",
        "http://a:b/x",
        "http://[a/x",
        "http://a..b/x",
        "http://a/x\n",
    ],
)
def test_addresses_that_are_none(data_dir, url):
    with pytest.raises(Mistake, match="url|no valid address"):
        fetch.fetch_tiny_imagenet(data_dir, url)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://127.0.0.1/"])
@pytest.mark.fault("fetch: server refuses, stalls or is gone")
def test_redirects_leave_http_no_more_than_addresses_do(server, data_dir, location):
    server.always = {"location": location}
    with pytest.raises(Mistake, match="302"):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("md5", ["", "none", "123", "g" * 32])
def test_md5_that_is_none(server, data_dir, md5):
    with pytest.raises(Mistake, match="--md5="):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=md5)
    assert server.ranges == [] and not data_dir.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_data_dir_that_is_a_file(server, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Mistake, match="not a folder"):
        fetch.fetch_tiny_imagenet(tmp_path / "file" / below, server.url, md5=MD5)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_target_that_is_no_folder(server, data_dir, kind):
    data_dir.mkdir()
    if kind == "file":
        (data_dir / FOLDER).write_text("mine")
    else:
        (data_dir / FOLDER).symlink_to("nowhere")
    with pytest.raises(Mistake, match="not a folder; remove it"):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert server.ranges == [] and left(data_dir) == [FOLDER]


# ---- the disk


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.fault("fetch: disk full")
def test_full_disk_while_downloading_is_no_broken_connection(server, data_dir, monkeypatch):
    real = Path.open

    class Full(io.BytesIO):
        write = full

    def opened(path, mode="r"):
        return Full() if mode == "wb" else real(path, mode)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(Failure, match="No space left") as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert f"needed {len(ZIP):,} bytes" in one_line(info)
    assert len(server.ranges) == 1 and left(data_dir) == []


@pytest.mark.fault("fetch: disk full")
def test_full_disk_while_unpacking_leaves_only_the_archive(server, data_dir, monkeypatch):
    real, calls = shutil.copyfileobj, []

    def third_is_full(source, file):
        calls.append(source)
        return full() if len(calls) == 3 else real(source, file)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", third_is_full)
        with pytest.raises(Failure) as info:
            fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert re.search(r"needed [\d,]+ bytes, [\d,]+ are free", one_line(info))
    assert left(data_dir) == [part(data_dir).name]
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)  # with room, without the network
    assert_whole(data_dir)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("free", [len(ZIP) - 1, len(ZIP)])
@pytest.mark.fault("fetch: disk full")
def test_too_little_room_is_seen_beforehand(server, data_dir, monkeypatch, free):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(Failure, match=f"{free:,} are free"):
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    # Room for the archive alone: it is fetched, and kept for when there is more.
    assert left(data_dir) == ([part(data_dir).name] if free == len(ZIP) else [])


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_bad_archive_that_was_downloaded_is_deleted(server, data_dir):
    server.body = make_zip({"classes.txt": b"n01\n"})
    with pytest.raises(Mistake, match="not Tiny ImageNet") as info:
        fetch.fetch_tiny_imagenet(data_dir, server.url, md5=None)
    assert server.url in one_line(info) and left(data_dir) == []


# ---- several processes

CHILD = """
import sys, pathlib, fetch
fetch.fetch_tiny_imagenet(pathlib.Path(sys.argv[1]), sys.argv[2], md5=sys.argv[3])
"""


def start_fetch(data_dir: Path, url: str, code: str = CHILD) -> subprocess.Popen:
    command = [sys.executable, "-c", code, str(data_dir), url, MD5]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_second_fetch_waits_for_the_first(server, data_dir):
    server.plans = [{"cut": 30_000, "hang": True}]
    first = start_fetch(data_dir, server.url)
    assert server.arrived.wait(30)
    second = start_fetch(data_dir, server.url)
    assert "waiting" in second.stdout.readline()
    server.gate.set()
    assert (first.wait(30), second.wait(30)) == (0, 0)
    assert "already there" in second.stdout.read()
    assert_whole(data_dir)
    assert server.served == len(ZIP)


@pytest.mark.fault("fetch: download cut")
def test_killed_leftovers_are_taken_up_and_cleaned(server, data_dir):
    """A process that dies without a word in the middle of the unpacking, as of `kill -9`."""
    die = "import os; os.rename = lambda *_: os._exit(9)"
    killed = start_fetch(data_dir, server.url, die + CHILD)
    assert killed.wait(30) == 9
    assert left(data_dir) == [f".{FOLDER}.lock", f".{FOLDER}.unpacking", part(data_dir).name]
    (data_dir / f".{FOLDER}.unpacking" / "half.JPEG").write_bytes(b"half")
    fetch.fetch_tiny_imagenet(data_dir, server.url, md5=MD5)
    assert_whole(data_dir)
    assert len(server.ranges) == 1


def test_lock_lets_one_in_at_a_time_although_its_file_is_deleted(tmp_path, capsys):
    inside, most = [], []

    def work():
        for _ in range(40):
            with fetch._locked(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 320 and max(most) == 1
    assert left(tmp_path) == []
