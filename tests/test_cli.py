"""The commands: what they print, what they return, and what they write. Against a real server."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import cli_rig
import pytest
from cli_rig import COMMAND, Outcome, Run, process
from conftest import Server, StartServer

import restq
from restq import Realm, Realms
from restq.cli import carried_file, main
from restq.cli.root import COMMANDS
from restq.config import OPTIONS, Config

cli, run = cli_rig.cli, cli_rig.run


def file_job(path: Any = "work.sh", content: Any = "", **more: Any) -> dict[str, Any]:
    """Job data that carries a file, not necessarily a good one."""
    return {"restq_file": {"path": path, "content": content, **more}}


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


# What the manual shows.
def test_run_manual_session_prints_what_the_manual_says(
    run: Run, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTQ_CLIENT_URI", start_server().uri)
    for command, printed in (
        ('add --tags=work "ls -lah"', ""),
        ("add --tags=work,fun pwd", ""),
        ("status", "Status of realm default:\nContains 2 tags with 2 jobs\nDefined queues: 0\n"),
        ("add --queue=1 pwd", ""),
        ("pull --count=2", "ls -lah\npwd\n"),
        ("pull", "pwd\n"),
        ("status tag work", "2 jobs tagged with work\n"),
        ("get work", "ls -lah\npwd\n"),
    ):
        assert run(command) == Outcome(0, printed, ""), command
    status = run("status arg pwd")
    ages = r"       0 \| \d+\.\d\d\n       1 \| \d+\.\d\d\n"
    head = r"Status of argument pwd:\nTagged with: fun, work\nqueue id \| \(s\) since dequeue\n"
    assert re.fullmatch(head + ages, status.out)
    assert run("remove arg pwd") == Outcome(0, "removed argument pwd\n", "")
    assert run("list") == Outcome(0, "Realms:\n  + default\n", "")


def test_help_of_every_command_teaches_by_example(run: Run) -> None:
    for command in COMMANDS:
        outcome = run(command, "--help")
        assert (outcome.code, outcome.err) == (0, "")
        assert f"restq {command}" in outcome.out.split("Usage:", 1)[1].split("\n", 1)[1]
    assert "bash_source" in run("--help").out
    assert set(COMMANDS) <= set(re.findall(r"^  (\w+)  ", run("--help").out, re.MULTILINE))


def test_run_without_command_shows_help_as_wrong_usage(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([]) == 2
    assert b"Usage: restq" in capfdbinary.readouterr().out


def test_version_prints_the_version(run: Run) -> None:
    assert run("--version").out == f"restq {restq.__version__}\n"


def test_complete_in_bash_offers_commands() -> None:
    environ = {**os.environ, "_RESTQ_COMPLETE": "bash_complete", "COMP_WORDS": "restq sh", "COMP_CWORD": "1"}
    assert process(env=environ).stdout.split() == [b"plain,shards"]


# add
def test_add_several_args_makes_one_argument(cli: Run, realm: Realm) -> None:
    assert cli("add", "echo", "a", "b").code == 0
    assert realm.pull() == {"echo a b": [0, None]}


def test_add_after_double_dash_takes_options_as_text(cli: Run, realm: Realm) -> None:
    assert cli("add", "--", "ls", "-lah", "--json").code == 0
    assert list(realm.pull()) == ["ls -lah --json"]


def test_add_with_option_that_is_none_is_refused(cli: Run, realm: Realm) -> None:
    outcome = cli("add", "ls", "-lah")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("restq: No such option")
    assert realm.pull() == {}


def test_add_without_argument_is_refused(cli: Run) -> None:
    assert cli("add", "--tags=a").code == 2
    assert cli("add", "").code == 2


def test_add_takes_queue_and_tags_of_flags_over_those_of_environment(
    cli: Run, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTQ_CLI_TAGS", "of,environment")
    monkeypatch.setenv("RESTQ_CLI_QUEUE_ID", "7")
    cli("add", "a")
    cli("add", "b", "--tags=x", "--queue=late")
    assert (sorted(realm["a"]["tags"]), realm["a"]["queues"]) == (["environment", "of"], [[7, 0]])
    assert (realm["b"]["tags"], realm["b"]["queues"]) == (["x"], [["late", 0]])


def test_options_before_the_command_hold_and_yield_to_those_after_it(run: Run, server: Server, realm_name: str) -> None:
    uri = f"--uri={server.uri}"
    assert run(uri, "-r", realm_name, "add", "a").code == 0
    assert run(uri, "-r", "other", "pull", "--realm", realm_name).out == "a\n"


@pytest.mark.parametrize(
    "flags", [["--queue", ""], ["--queue", "x" * 600], ["--tags", "a\x01"], ["--realm", "a/b"], ["--uri", "there"]]
)
def test_add_with_impossible_name_is_wrong_usage(cli: Run, flags: list[str]) -> None:
    outcome = cli("add", "a", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"restq: .+\n", outcome.err)


def test_add_of_newline_is_refused_unless_null(cli: Run, realm: Realm) -> None:
    outcome = cli("add", "a\nb")
    assert outcome.code == 2
    assert "newline" in outcome.err
    assert realm.pull() == {}
    assert cli("add", "-0", "a\nb").code == 0
    assert list(realm.pull()) == ["a\nb"]


def test_add_again_with_other_file_fails(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one")
    assert cli("add", "--file=f", "job").code == 0
    assert cli("add", "--file=f", "job").code == 0
    assert cli("add", "--tags=later", "job").code == 0
    (tmp_path / "f").write_text("two")
    outcome = cli("add", "--file=f", "job")
    assert outcome.code == 1
    assert "already exists with other data" in outcome.err


def test_add_from_stdin_adds_each_line_and_skips_empty_ones(cli: Run, realm: Realm) -> None:
    assert process("add", "--tags=t", "--queue=3", "-", stdin=b"ls -lah\n\n-x\nlast without end").returncode == 0
    assert realm.pull(9) == {"ls -lah": [3, None], "-x": [3, None], "last without end": [3, None]}
    assert realm.get_tag_status("t") == {"count": 3}


def test_add_from_stdin_with_null_keeps_newlines(cli: Run, realm: Realm) -> None:
    assert process("add", "-0", "-", stdin=b"a\nb\0c\0").returncode == 0
    assert list(realm.pull()) == ["a\nb", "c"]


def test_add_from_stdin_of_more_than_a_batch_adds_all(cli: Run, realm: Realm) -> None:
    lines = [f"job {n}" for n in range(2345)]
    assert process("add", "-", stdin="\n".join(lines).encode()).returncode == 0
    assert list(realm.pull(9999)) == lines


@pytest.mark.parametrize(("line", "why"), [(b"\xff", "not UTF-8"), (b"x" * 8193, "8193"), (b"y" * 3_000_000, "bytes")])
def test_add_from_stdin_names_the_bad_line_and_adds_those_before(cli: Run, realm: Realm, line: bytes, why: str) -> None:
    outcome = process("add", "-", stdin=b"good\n" + line + b"\nnever read\n")
    assert outcome.returncode == 2
    assert b"argument 2 of standard input: " in outcome.stderr
    assert why.encode() in outcome.stderr
    assert list(realm.pull()) == ["good"]


def test_add_from_stdin_with_file_is_refused(cli: Run) -> None:
    assert cli("add", "--file=f", "-").code == 2


def test_add_from_closed_stdin_fails_in_one_sentence(cli: Run, realm: Realm) -> None:
    command = shlex.join([*COMMAND, "add", "-"])
    outcome = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (1, "restq: standard input is closed\n")


def test_add_of_bytes_that_are_no_text_is_refused(cli: Run) -> None:
    outcome = subprocess.run([*COMMAND, "add", b"\xff"], capture_output=True, check=False)
    assert outcome.returncode == 2
    assert b"not UTF-8" in outcome.stderr


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "en_US.ISO-8859-1", "POSIX"])
def test_add_and_pull_in_any_locale_keep_the_bytes(cli: Run, realm: Realm, locale: str) -> None:
    environ = {**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert process("add", "grüße 🦀", env=environ).returncode == 0
    assert list(realm.pull()) == ["grüße 🦀"]
    realm.add("zurück", 1)
    assert process("pull", env=environ).stdout == "zurück\n".encode()


# pull
def test_pull_of_nothing_exits_with_three_and_is_silent(cli: Run) -> None:
    assert cli("pull") == Outcome(3, "", "")


def test_pull_with_max_queue_leaves_later_queues(cli: Run) -> None:
    cli("add", "early")
    cli("add", "--queue=5", "late")
    assert cli("pull", "--max-queue=4").lines == ["early"]
    assert cli("pull", "--max-queue=4").code == 3
    assert cli("pull").lines == ["late"]


@pytest.mark.parametrize("count", ["0", "-1", "x", "", "100001", "1.5"])
def test_pull_with_impossible_count_is_wrong_usage(cli: Run, count: str) -> None:
    outcome = cli("pull", f"--count={count}")
    assert outcome.code == 2
    assert outcome.err.startswith("restq: flag --count: client.count is ")


def test_pull_of_newline_without_null_names_it_and_prints_the_others(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b\nrm -rf", "c"):
        realm.add(job_id, 0)
    outcome = cli("pull")
    assert (outcome.code, outcome.out) == (1, "a\nc\n")
    assert outcome.err.startswith(r"restq: 'b\nrm -rf' is not printed")


def test_pull_with_null_ends_each_argument_with_nul(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b\nc"):
        realm.add(job_id, 0)
    assert cli("pull", "--null") == Outcome(0, "a\0b\nc\0", "")


def test_pull_as_json_shows_all(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.add("a\nb", "q", {"x": 1})
    realm.add("c", "r", file_job("f", base64_of(b"bytes")))
    realm.add("d", "s", file_job("../f"))
    outcome = cli("pull", "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)
    names = ("argument", "queue_id", "data", "file", "tags", "attempt")
    assert [[job[name] for name in names] for job in found["jobs"]] == [
        ["a\nb", "q", {"x": 1}, None, [], 1],
        ["c", "r", None, "f", [], 1],
    ]
    assert [failed["argument"] for failed in found["failed"]] == ["d"]
    leases = [job["lease_id"] for job in (*found["jobs"], *found["failed"])]
    assert realm.ack(leases)["acked"] == leases
    assert time.time() < found["jobs"][0]["lease_expires_at"] < time.time() + 601
    assert (tmp_path / "f").read_bytes() == b"bytes"
    assert json.loads(cli("pull", "--json").out) == {"jobs": [], "failed": []}


def test_pull_into_closed_output_takes_nothing(cli: Run, realm: Realm) -> None:
    realm.add("a", 0)
    command = shlex.join([*COMMAND, "pull"])
    outcome = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (1, "restq: standard output is closed\n")
    assert list(realm.pull()) == ["a"]


@pytest.mark.parametrize("command", ["pull", "get t", "list", "status", "config show", "--help"])
def test_print_to_closed_pipe_fails_in_one_sentence_at_most(cli: Run, realm: Realm, command: str) -> None:
    realm.add("a", 0, tags=["t"])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        outcome = subprocess.run(
            [*COMMAND, *command.split()], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert outcome.returncode == 1
    assert outcome.stderr in ("", "restq: standard output: Broken pipe\n")


def test_print_to_full_disk_fails_in_one_sentence(cli: Run, realm: Realm) -> None:
    realm.add("a", 0)
    with open("/dev/full", "wb") as full:
        outcome = subprocess.run([*COMMAND, "pull"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (1, "restq: standard output: No space left on device\n")


# Files in jobs.
def test_pull_writes_carried_file_before_it_prints(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 99
    (tmp_path / "work.sh").write_bytes(content)
    assert cli("add", "--file=work.sh", "chmod +x work.sh; ./work.sh").code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli("pull") == Outcome(0, "chmod +x work.sh; ./work.sh\n", "")
    assert (elsewhere / "work.sh").read_bytes() == content
    assert list(elsewhere.iterdir()) == [elsewhere / "work.sh"]


@pytest.mark.parametrize(("mode", "written"), [(0o600, 0o640), (0o777, 0o750), (0o4755, 0o750), (0o100, 0o750)])
def test_pull_writes_carried_file_with_modest_permissions(cli: Run, tmp_path: Path, mode: int, written: int) -> None:
    source = tmp_path / "f"
    source.write_text("x")
    source.chmod(mode | 0o400)
    cli("add", "--file=./f", "job")
    source.unlink()
    before = os.umask(0o027)
    try:
        cli("pull")
    finally:
        os.umask(before)
    assert source.stat().st_mode & 0o7777 == written


def test_pull_makes_directories_of_carried_file(cli: Run, tmp_path: Path, realm: Realm) -> None:
    realm.add("job", 0, file_job("a/./b//work.sh", base64_of(b"x")))
    assert cli("pull").code == 0
    assert (tmp_path / "a" / "b" / "work.sh").read_bytes() == b"x"


def test_pull_replaces_file_and_link_in_place_of_writing_through_them(cli: Run, tmp_path: Path, realm: Realm) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("precious")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "hard").hardlink_to(outside)
    realm.add("one", 0, file_job("link", base64_of(b"new")))
    realm.add("two", 0, file_job("hard", base64_of(b"new")))
    assert cli("pull").lines == ["one", "two"]
    assert outside.read_text() == "precious"
    for name in ("link", "hard"):
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"


BAD_FILES: Mapping[str, Any] = {
    "absolute": file_job("/tmp/restq-evil"),
    "up": file_job("../evil"),
    "up later": file_job("a/../../evil"),
    "up alone": file_job(".."),
    "here": file_job("."),
    "nothing": file_job(""),
    "directory": file_job("a/"),
    "nul": file_job("a\0b"),
    "a directory is there": file_job("there"),
    "through a link": file_job("link/evil"),
    "through a link later": file_job("there/link/evil"),
    "through a file": file_job("plain/evil"),
    "name too long": file_job("x" * 300),
    "not base64": file_job("f", "%%%"),
    "not ascii": file_job("f", "é"),
    "number": file_job(5),
    "content of no text": file_job("f", [1]),
    "no content": {"restq_file": {"path": "f"}},
    "executable of no boolean": file_job("f", "", executable="rwx"),
    "no object": {"restq_file": "f"},
    "none": {"restq_file": None},
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_pull_of_malicious_file_keeps_back_its_argument_and_prints_the_others(
    cli: Run, tmp_path: Path, realm: Realm, case: str
) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    (inside / "there").mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    (inside / "there" / "link").symlink_to("../../outside")
    (inside / "plain").write_text("x")
    os.chdir(inside)
    before = sorted(tmp_path.rglob("*"))
    realm.add("first", 0)
    realm.add("evil", 0, BAD_FILES[case])
    realm.add("last", 0)
    outcome = cli("pull")
    assert (outcome.code, outcome.out) == (1, "first\nlast\n")
    assert re.fullmatch(r"restq: 'evil' is not printed and stays leased: .+\n", outcome.err)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "a"] == before
    assert not Path("/tmp/restq-evil").exists()


def test_pull_with_files_anywhere_writes_where_the_job_says(cli: Run, tmp_path: Path, realm: Realm) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    os.chdir(inside)
    realm.add("a", 0, file_job("../up", base64_of(b"up")))
    realm.add("b", 0, file_job(str(tmp_path / "new" / "absolute"), base64_of(b"absolute")))
    assert cli("pull", "--files-anywhere") == Outcome(0, "a\nb\n", "")
    assert (tmp_path / "up").read_text() == "up"
    assert (tmp_path / "new" / "absolute").read_text() == "absolute"


def test_pull_of_two_files_of_one_path_keeps_back_the_second(cli: Run, tmp_path: Path, realm: Realm) -> None:
    realm.add("a", 0, file_job("f", base64_of(b"one")))
    realm.add("same", 0, file_job("f", base64_of(b"one")))
    realm.add("b", 0, file_job("f", base64_of(b"two")))
    outcome = cli("pull")
    assert (outcome.code, outcome.out) == (1, "a\nsame\n")
    assert "--count=1" in outcome.err
    assert (tmp_path / "f").read_text() == "one"


def test_pull_of_data_that_is_no_file_writes_nothing(cli: Run, tmp_path: Path, realm: Realm) -> None:
    for n, data in enumerate([["restq_file"], "restq_file", {"path": "f", "content": ""}, 5]):
        realm.add(str(n), 0, data)
    assert cli("pull").lines == ["0", "1", "2", "3"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../f", "missing", ".", "fifo", "a/../f"])
def test_add_of_file_that_pull_would_refuse_fails(cli: Run, tmp_path: Path, realm: Realm, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    outcome = cli("add", f"--file={path}", "job")
    assert (outcome.code, outcome.out) == (1, "")
    assert re.fullmatch(r"restq: .+\n", outcome.err)
    assert realm.pull() == {}


def test_add_of_file_larger_than_a_body_fails_before_it_is_sent(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTQ_WEBAPP_BODY_BYTES_MAX", "1024")
    (tmp_path / "f").write_bytes(bytes(769))
    outcome = cli("add", "--file=f", "job")
    assert (outcome.code, outcome.err) == (1, "restq: 'f' has 769 bytes, and a job carries at most 768\n")


def test_add_with_files_anywhere_carries_any_path(cli: Run, tmp_path: Path, realm: Realm) -> None:
    (tmp_path / "f").write_text("x")
    assert cli("add", "--files-anywhere", f"--file={tmp_path / 'f'}", "job").code == 0
    assert realm["job"]["data"] == file_job(str(tmp_path / "f"), base64_of(b"x"), executable=False)


def test_write_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(carried_file.CarriedFileError, match="'there' cannot be written"):
        carried_file.CarriedFile("there", b"x", False).write(anywhere=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


# remove, status, get, list
def test_remove_argument_takes_it_out_of_every_queue(cli: Run, realm: Realm) -> None:
    cli("add", "--tags=t", "a")
    cli("add", "--queue=1", "a")
    assert json.loads(cli("remove", "arg", "a", "--json").out) == {"removed": 1, "arg": "a"}
    assert realm.status["total_jobs"] == 0


def test_remove_tag_removes_its_arguments_and_says_how_many(cli: Run, realm: Realm) -> None:
    for name in ("a", "b"):
        cli("add", "--tags=t,u", name)
    cli("add", "c")
    assert cli("remove", "tag", "t") == Outcome(0, "removed 2 jobs tagged with t\n", "")
    assert realm.status["total_jobs"] == 1


def test_remove_and_status_join_words_of_an_argument_as_add_does(cli: Run, realm: Realm) -> None:
    assert cli("add", "echo", "a", "b").code == 0
    assert cli("status", "arg", "echo", "a", "b").lines[0] == "Status of argument echo a b:"
    assert cli("remove", "arg", "echo", "a", "b").out == "removed argument echo a b\n"
    assert realm.status["total_jobs"] == 0


@pytest.mark.parametrize("command", ["remove", "status"])
def test_name_several_tags_at_once_is_refused(cli: Run, realm: Realm, command: str) -> None:
    realm.add("a", 0, tags=["house work"])
    outcome = cli(command, "tag", "house", "work")
    assert (outcome.code, outcome.out) == (2, "")
    assert "one tag, not 2: put quotes around it if it holds spaces" in outcome.err
    assert cli(command, "tag", "house work").code == 0


def test_status_of_what_is_no_kind_names_the_two(cli: Run) -> None:
    outcome = cli("status", "foo")
    assert outcome.err.startswith("restq: Invalid value for '[arg|tag]': 'foo' is not one of 'arg', 'tag'.")


@pytest.mark.parametrize(
    "command", ["remove arg no", "remove tag no", "status arg no", "status tag no", "get no", "remove arg .."]
)
def test_ask_for_what_is_not_there_exits_with_three_and_a_sentence(cli: Run, command: str) -> None:
    cli("add", "a")
    outcome = cli(command)
    assert (outcome.code, outcome.out) == (3, "")
    assert re.fullmatch(r"restq: .+\n", outcome.err)


@pytest.mark.parametrize("command", ["remove", "remove arg", "remove it x", "status it x", "status arg", "get", "what"])
def test_call_without_what_is_needed_is_wrong_usage(cli: Run, command: str) -> None:
    outcome = cli(command)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"restq: .+\n", outcome.err)


def test_status_of_unknown_realm_shows_an_empty_one(cli: Run, realm_name: str) -> None:
    assert cli("status", "-r", realm_name).lines == [
        f"Status of realm {realm_name}:",
        "Contains 0 tags with 0 jobs",
        "Defined queues: (none)",
    ]


def test_status_sorts_queues_by_number_and_then_text(cli: Run, realm: Realm) -> None:
    for queue_id in ("b", 10, "a", 2, -1):
        realm.add("x", queue_id)
    assert cli("status").lines[-1] == "Defined queues: -1, 2, 10, a, b"
    rows = cli("status", "arg", "x").lines
    assert rows[1:] == [
        "Tagged with: (none)",
        "queue id | (s) since dequeue",
        *(f"{queue_id:>8} | 0.00" for queue_id in ("-1", "2", "10", "a", "b")),
    ]


def test_status_as_json_shows_what_the_text_shows_and_the_states(cli: Run, realm: Realm, realm_name: str) -> None:
    realm.add("a", 10, {"x": 1}, tags=["y", "x"])
    realm.add("a", 9, delay=100)
    status = json.loads(cli("status", "--json", "-r", realm_name).out)
    states = {queue["queue_id"]: (queue["ready"], queue["delayed"]) for queue in status.pop("states")}
    assert status == {"realm": realm_name, "total_jobs": 1, "total_tags": 2, "queues": {"9": 1, "10": 1}}
    assert states == {9: (0, 1), 10: (1, 0)}
    status = json.loads(cli("status", "arg", "a", "--json").out)
    places = [(place["queue_id"], place["seconds_since_dequeue"], place["state"]) for place in status.pop("queues")]
    assert status == {"argument": "a", "tags": ["x", "y"], "data": {"x": 1}}
    assert places == [(9, 0, "delayed"), (10, 0, "ready")]
    status = json.loads(cli("status", "tag", "x", "--json").out)
    assert (status["tag"], status["count"], status["ready"], status["delayed"]) == ("x", 1, 1, 1)


def test_status_with_states_shows_them_beside_the_text_of_2013(cli: Run, realm: Realm) -> None:
    realm.add("a", 0, tags=["t"])
    realm.add("a", "late", run_at=time.time() + 100)
    assert cli("status").lines == cli("status --states").lines[:3]
    assert [line.split() for line in cli("status --states").lines[3:]] == [
        ["queue", "id", "ready", "leased", "delayed", "blocked", "dead", "(s)", "since", "ready"],
        ["0", "1", "0", "0", "0", "0", ANY],
        ["late", "0", "0", "1", "0", "0"],
    ]
    assert cli("status arg a --states").lines[2:] == [
        "queue id | (s) since dequeue | state",
        "       0 | 0.00              | ready",
        "    late | 0.00              | delayed",
    ]
    rows = [line.split() for line in cli("status tag t --states").lines[1:]]
    assert rows == [["ready", "leased", "delayed", "blocked", "dead"], ["1", "0", "1", "0", "0"]]


def test_get_of_newline_without_null_names_it_and_prints_the_others(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b\nc"):
        realm.add(job_id, 0, tags=["t"])
    outcome = cli("get t")
    assert (outcome.code, outcome.out) == (1, "a\n")
    assert r"'b\nc' is not printed" in outcome.err
    assert cli("get", "-0", "t").out == "a\0b\nc\0"
    assert json.loads(cli("get", "--json", "t").out) == {"tag": "t", "arguments": ["a", "b\nc"]}


def test_list_shows_live_realms(cli: Run, realm: Realm, realm_name: str) -> None:
    realm.add("a", 0)
    lines = cli("list").lines
    assert lines[0] == "Realms:"
    assert f"  + {realm_name}" in lines
    assert realm_name in json.loads(cli("list", "--json").out)["realms"]


# shards and config
def test_shards_shows_and_pins_realms(cli: Run, realm: Realm, realm_name: str) -> None:
    realm.add("a", 0)
    lines = cli("shards").lines
    assert lines[0].split() == ["shard", "pid", "busy", "requests", "jobs", "realms"]
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    for shard in ("0", "1"):
        assert cli("shards", "pin", realm_name, shard) == Outcome(0, "", "")
        shards = json.loads(cli("shards", "--json").out)["shards"]
        held = {str(found["shard"]): found["realms"].get(realm_name) for found in shards}
        assert held.pop(shard) == {"jobs": 1, "pinned": True}
        assert list(held.values()) == [None]
        rows = [line.split() for line in cli("shards").lines]
        assert [shard, "1", "pinned", realm_name] in rows
    assert cli("shards", "unpin", realm_name) == Outcome(0, "", "")
    rows = [line.split() for line in cli("shards").lines]
    assert any(row[1:] == ["1", realm_name] for row in rows)


@pytest.mark.parametrize("shard", ["7", "-1", "x"])
def test_shards_pin_to_impossible_shard_is_refused(cli: Run, realm: Realm, realm_name: str, shard: str) -> None:
    realm.add("a", 0)
    outcome = cli("shards", "pin", realm_name, "--", shard)
    assert outcome.code == 2
    assert re.fullmatch(r"restq: .+\n", outcome.err)


def test_config_show_prints_each_value_and_its_source(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTQ_CLIENT_COUNT", "7")
    monkeypatch.setenv("RESTQ_CLI_TAGS", "a,b")
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in run("config", "show").lines}
    assert list(shown) == list(OPTIONS)
    assert shown["client.count"].split(maxsplit=1) == ["7", "environment variable RESTQ_CLIENT_COUNT"]
    assert shown["cli.tags"].startswith("[a, b] ")
    assert shown["webapp.debug"].split(maxsplit=1) == ["false", "built-in default"]
    found = json.loads(run("config", "show", "--json").out)
    assert found["client.count"] == {"value": 7, "source": "environment variable RESTQ_CLIENT_COUNT"}
    assert set(found) == set(OPTIONS)


# What goes wrong.
@pytest.mark.parametrize(
    "command",
    [
        *("pull", "pull --wait=9", "add a", "list", "list --jobs", "status", "get t", "remove arg a", "shards"),
        *(
            "shards unpin x",
            "ack 1",
            "extend 1",
            "explain a",
            "wait --tag=t",
            "limit tag t",
            "configure",
            "cancel arg a",
        ),
    ],
)
def test_call_without_server_exits_with_four_and_names_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RESTQ_CLIENT_URI", f"http://127.0.0.1:{port}/")
    outcome = run(command)
    sentence = f"restq: no restq server answers at http://127.0.0.1:{port}/: Connection refused\n"
    assert outcome == Outcome(4, "", sentence)


def test_call_with_wrong_variable_exits_with_two_and_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTQ_CLIENT_CUONT", "7")
    outcome = run("config", "show")
    assert outcome.code == 2
    assert outcome.err.startswith("restq: RESTQ_CLIENT_CUONT: no option has this environment variable")


def test_call_through_proxy_falls_back_to_requests(cli: Run, realm: Realm, server: Server) -> None:
    realm.add("a", 0)
    code = "import sys; from restq.cli import main; main(['pull']); print('requests' in sys.modules)"
    for environ, loaded in (({}, "False"), ({"http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}, "True")):
        realm.add("a", len(environ))
        outcome = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **environ}, capture_output=True, text=True, check=False
        )
        assert outcome.stdout.split() == ["a", loaded]


def test_call_that_is_interrupted_exits_with_130_and_without_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        child = subprocess.Popen([*COMMAND, "pull", "--uri", uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        connection, _ = silent.accept()
        with connection, child:
            connection.recv(1)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err.strip()) == (130, b"", b"")


def test_loop_of_the_manual_works_off_a_batch(cli: Run, realm: Realm, tmp_path: Path) -> None:
    for name in ("a", "b c", "-n"):
        realm.add(f"printf '%s\\n' {shlex.quote(name)} >> done", 0)
    command = shlex.join(COMMAND)
    loop = (
        f'restq() {{ {command} "$@"; }}; while arg=$(restq pull --count=1); do'
        ' eval "$arg" && restq remove arg -- "$arg"; done'
    )
    subprocess.run(["sh", "-c", loop], check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / "done").read_text() == "a\nb c\n-n\n"
    assert realm.status["total_jobs"] == 0


# web
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"webapp.host": "127.0.0.1", "webapp.port": 8586}),
        (["80"], {"webapp.host": "127.0.0.1", "webapp.port": 80}),
        ([":80"], {"webapp.host": "127.0.0.1", "webapp.port": 80}),
        (["0.0.0.0:0"], {"webapp.host": "0.0.0.0", "webapp.port": 0}),
        (["[::1]:8586"], {"webapp.host": "::1", "webapp.port": 8586}),
        (["host.name:1", "--shards=3", "--frontends=2"], {"webapp.shards": 3, "webapp.frontends": 2}),
        (["--data-dir", "~/q", "--quiet"], {"realms.realms_config_root": "~/q", "webapp.quiet": True}),
        (["--debug"], {"webapp.debug": True, "webapp.quiet": False}),
    ],
)
def test_web_hands_its_flags_to_the_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: dict[str, Any]
) -> None:
    from restq import supervisor

    given: list[Config] = []

    def serve(config: Config) -> int:
        given.append(config)
        return 5

    monkeypatch.setattr(supervisor, "serve", serve)
    assert run("web", "--data-dir=/nowhere", *arguments).code == 5
    assert {path: given[0][path] for path in expected} == {
        path: value.replace("~", os.environ["HOME"]) if isinstance(value, str) else value
        for path, value in expected.items()
    }


@pytest.mark.parametrize(
    "address", ["host", "::1", "::1:80", "[::1]", "http://x:1", "x:", "x:y", "x:70000", "x:-1", ""]
)
def test_web_with_impossible_address_is_wrong_usage(run: Run, address: str) -> None:
    outcome = run("web", "--quiet", address)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"restq: .+\n", outcome.err)


@pytest.mark.parametrize("flag", ["--shards=0", "--shards=x", "--frontends=0", "--frontends=9999"])
def test_web_with_impossible_number_is_wrong_usage(run: Run, flag: str) -> None:
    outcome = run("web", flag)
    assert outcome.code == 2
    assert outcome.err.startswith(f"restq: flag {flag.split('=')[0]}: ")


def test_web_serves_until_told_to_stop(start_server: StartServer) -> None:
    server = start_server()
    with Realms(server.uri) as realms:
        assert len(realms) == 0
        assert len(realms.shards()) == 2
    assert server.stop() == 0


def test_web_on_a_port_in_use_fails_in_one_sentence(server: Server, tmp_path: Path) -> None:
    outcome = process("web", f"127.0.0.1:{server.port}", f"--data-dir={tmp_path / 'data'}")
    assert outcome.returncode == 1
    assert b"Traceback" not in outcome.stderr
    assert str(server.port).encode() in outcome.stderr


def test_web_on_a_data_directory_in_use_fails_in_one_sentence(server: Server) -> None:
    outcome = process("web", "127.0.0.1:0", f"--data-dir={server.data_dir}")
    assert outcome.returncode == 1
    assert b"Traceback" not in outcome.stderr
    assert str(server.data_dir).encode() in outcome.stderr
