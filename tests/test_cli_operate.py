"""The commands of who looks after the queues: list, explain, wait, move, clear, redrive, cancel, limits, settings."""

from __future__ import annotations

import json
import re
import subprocess

import cli_rig
import pytest
from cli_rig import COMMAND, Outcome, Run

from restq import Realm

cli, run = cli_rig.cli, cli_rig.run


def kill(realm: Realm, job_id: str, queue_id: int = 0, tags: tuple[str, ...] = ()) -> None:
    """Add a job that is dead."""
    realm.add(job_id, queue_id, tags=tags, max_attempts=1)
    realm.nack(next(job for job in realm.pull_jobs(99) if job.job_id == job_id), "boom\nand why", 3)


# list
def test_list_jobs_shows_each_place_in_the_order_of_adding(cli: Run, realm: Realm) -> None:
    kill(realm, "c")
    realm.add("b\n", "late", delay=100)
    realm.add("a", 1)
    realm.add("a", 0)
    realm.pull(1)
    assert cli("list --jobs") == Outcome(
        0,
        "state    queue id  attempt  exit code  argument\n"
        "dead            0        1          3  c\n"
        "delayed      late        0             'b\\n'\n"
        "leased          0        1             a\n"
        "ready           1        0             a\n",
        "",
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--state=ready", ["1 b", "0 ab"]),
        ("--state=delayed", ["0 b"]),
        ("--queue=0", ["0 b", "0 ab"]),
        ("--queue=0 --state=ready", ["0 ab"]),
        ("--tag=t", ["0 b", "1 b"]),
        ("--prefix=a", ["0 ab"]),
        ("--state=ready --tag=t --prefix=b", ["1 b"]),
    ],
)
def test_list_with_filters_shows_the_places_that_fit(cli: Run, realm: Realm, flags: str, expected: list[str]) -> None:
    realm.add("b", 0, tags=["t"], delay=100)
    realm.add("b", 1)
    realm.add("ab", 0)
    rows = [line.split() for line in cli(f"list {flags}").lines[1:]]
    assert [f"{row[1]} {row[3]}" for row in rows] == expected


@pytest.mark.parametrize("flags", ["--state=dead", "--queue=9", "--tag=no", "--prefix=x", "--state=done"])
def test_list_of_what_is_not_there_exits_with_three(cli: Run, realm: Realm, flags: str) -> None:
    realm.add("a", 0)
    assert cli(f"list {flags}") == Outcome(3, "", "")
    assert json.loads(cli(f"list --json {flags}").out) == {"jobs": [], "more": False}


def test_list_with_limit_says_that_there_are_more(cli: Run, realm: Realm) -> None:
    realm.bulk_add([{"job_id": f"{n:03}", "queue_id": 0} for n in range(60)])
    outcome = cli("list --jobs")
    assert (outcome.code, len(outcome.lines), outcome.err.count("--all")) == (0, 51, 1)
    assert len(cli("list --limit=7").lines) == 8
    for flags in ("--all", "--limit=60"):
        outcome = cli(f"list {flags}")
        assert (len(outcome.lines), outcome.err) == (61, "")
    found = json.loads(cli("list --limit=2 --json").out)
    assert ([job["job_id"] for job in found["jobs"]], found["more"]) == (["000", "001"], True)


def test_list_as_json_shows_what_http_shows(cli: Run, realm: Realm) -> None:
    realm.add("a", 0, {"x": 1}, tags=["t"], after=["u"])
    assert json.loads(cli("list --jobs --json").out) == {"jobs": list(realm.list_jobs()), "more": False}
    assert json.loads(cli("list --data --json").out)["jobs"][0]["data"] == {"x": 1}


def test_list_tags_shows_their_counts(cli: Run, realm: Realm) -> None:
    realm.add("a", 0, tags=["nightly", "zoo"])
    realm.add("a", 1, delay=100)
    realm.add("b", 0, tags=["nightly"])
    rows = [line.split() for line in cli("list --tags").lines]
    assert rows == [
        ["jobs", "ready", "leased", "delayed", "blocked", "dead", "tag"],
        ["2", "2", "0", "1", "0", "0", "nightly"],
        ["1", "1", "0", "1", "0", "0", "zoo"],
    ]
    assert [line.split()[-1] for line in cli("list --tags --prefix=z").lines] == ["tag", "zoo"]
    found = json.loads(cli("list --tags --limit=1 --json").out)
    assert found == {"tags": [realm.get_tag("nightly")], "more": True}
    assert cli("list --tags --prefix=x") == Outcome(3, "", "")


def test_list_done_shows_results(cli: Run, realm: Realm) -> None:
    realm.configure(keep_done={"seconds": 60})
    realm.add("a", 5)
    realm.ack(realm.pull_jobs(1), exit_code=0, result=[1])
    assert cli("list --state=done").lines[1].split() == ["done", "5", "1", "0", "a"]
    assert json.loads(cli("list --state=done --json").out)["jobs"][0]["result"] == [1]


@pytest.mark.parametrize(
    "flags",
    ["--state=x", "--limit=0", "--limit=x", "--limit=1 --all", "--data", "--queue=", "--tag=", "--tags --state=dead"],
)
def test_list_with_impossible_filter_is_wrong_usage(cli: Run, flags: str) -> None:
    outcome = cli(f"list {flags}")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)


# explain, wait
def test_explain_says_why_and_how_it_last_failed(cli: Run, realm: Realm) -> None:
    kill(realm, "echo a")
    realm.add("echo a", 1, delay=100)
    first, failed, *error, second = cli("explain echo a").lines
    assert re.fullmatch("queue 0: .*dead.*", first)
    assert re.fullmatch(r"  it last failed at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d with exit code 3:", failed)
    assert error == ["    boom", "    and why"]
    assert re.fullmatch("queue 1: .*delayed.*", second)
    found = json.loads(cli("explain --json echo a").out)
    assert (found["argument"], found["queues"][0]["error"]) == ("echo a", "boom\nand why")


def test_wait_for_tag_that_nobody_carries_exits_with_zero(cli: Run) -> None:
    assert cli("wait --tag=t") == Outcome(0, "", "")
    assert json.loads(cli("wait --tag=t --json").out)["count"] == 0


def test_wait_for_tag_exits_with_three_when_time_is_up(cli: Run, realm: Realm) -> None:
    kill(realm, "a", tags=("t",))
    realm.add("b", 0, tags=["t"])
    outcome = cli("wait --tag=t --timeout=0.2")
    assert outcome == Outcome(3, "", "restq: the time is up, and 2 jobs are tagged with t, 1 of them dead\n")
    outcome = cli("wait --tag=t --timeout=0.2 --json")
    assert (outcome.code, json.loads(outcome.out)["count"]) == (3, 2)


def test_wait_for_tag_ends_when_the_last_job_is_acked(cli: Run, realm: Realm) -> None:
    realm.add("a", 0, tags=["t"])
    lease = realm.pull_jobs(1)[0].lease_id
    with subprocess.Popen([*COMMAND, "wait", "--tag=t", "--timeout=60"]) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        realm.ack(lease)
        assert waiting.wait(30) == 0


# move, clear, redrive, cancel
def test_move_argument_or_tag_puts_them_into_the_other_queue(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b", "c"):
        realm.add(job_id, 0, tags=["t"])
    assert cli("move arg a --from-queue=0 --to-queue=5").out == "moved argument a from queue 0 to queue 5\n"
    realm.pull(1)
    outcome = cli("move tag t --from-queue=0 --to-queue=late")
    assert outcome.out == "moved 1 jobs tagged with t from queue 0 to queue late\n1 are leased and stay in queue 0\n"
    assert realm.status["queues"] == {"0": 1, "5": 1, "late": 1}
    reply = json.loads(cli("move tag t --from-queue=late --to-queue=5 --json").out)
    assert reply == {"moved": 1, "leased": 0, "tag": "t", "from_queue": "late", "to_queue": 5}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("move arg a --from-queue=9 --to-queue=1", 3),
        ("move arg no --from-queue=0 --to-queue=1", 3),
        ("move tag no --from-queue=0 --to-queue=1", 3),
        ("move arg leased --from-queue=0 --to-queue=1", 1),
        ("move arg a --to-queue=1", 2),
        ("clear 9", 3),
        ("clear", 2),
        ("redrive arg a", 3),
        ("redrive arg no", 3),
        ("redrive tag no", 3),
        ("redrive queue 9", 3),
        ("redrive tag", 2),
        ("redrive what x", 2),
        ("cancel arg no", 3),
        ("cancel tag no", 3),
        ("explain no", 3),
        ("wait", 2),
        ("wait --tag=t --timeout=x", 2),
        ("limit queue 9", 3),
        ("limit tag t --rate=x", 2),
        ("limit tag t --max-leased=0", 2),
        ("limit tag t --max-leased=1.5", 2),
        ("limit t", 2),
        ("pause all", 2),
        ("configure foo", 2),
        ("configure foo=1", 2),
        ("configure backoff.base=x", 2),
        ("configure backoff=none backoff.base=1", 2),
        ("configure queue", 2),
        ("configure queue lease_time=1", 2),
    ],
)
def test_call_on_what_is_not_there_or_not_possible_says_so_in_one_sentence(
    cli: Run, realm: Realm, command: str, code: int
) -> None:
    realm.add("leased", 0)
    realm.pull()
    realm.add("a", 0)
    before = list(realm.list_jobs()), realm.get_config()
    outcome = cli(command)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
    assert before == (list(realm.list_jobs()), realm.get_config())


def test_clear_empties_the_queue(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b"):
        realm.add(job_id, "late")
    realm.add("a", 0)
    assert cli("clear late") == Outcome(0, "cleared queue late, removed 1 jobs\n", "")
    assert [job["job_id"] for job in realm.list_jobs()] == ["a"]
    assert json.loads(cli("clear 0 --json").out) == {"removed": 1, "queue": 0}


def test_redrive_makes_the_named_dead_ready(cli: Run, realm: Realm) -> None:
    for job_id, queue_id, tag in (("a", 0, "t"), ("b c", 0, "u"), ("d", 1, "u"), ("e", 2, "u")):
        kill(realm, job_id, queue_id, (tag,))

    def ready() -> list[str]:
        return [job["job_id"] for job in realm.list_jobs("ready")]

    assert cli("redrive tag t") == Outcome(0, "redriven 1 jobs\n", "")
    assert ready() == ["a"]
    assert json.loads(cli("redrive arg b c --json").out) == {"redriven": 1, "arg": "b c"}
    assert ready() == ["a", "b c"]
    assert json.loads(cli("redrive queue 1 --json").out) == {"redriven": 1, "queue": 1}
    assert ready() == ["a", "b c", "d"]
    assert cli("redrive").out == "redriven 1 jobs\n"
    assert ready() == ["a", "b c", "d", "e"]
    assert cli("redrive") == Outcome(0, "redriven 0 jobs\n", "")


def test_cancel_removes_what_is_not_leased_and_marks_what_is(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b", "c", "d"):
        realm.add(job_id, 0, tags=["t"])
    (job,) = realm.pull_jobs(1)
    assert cli("cancel arg b") == Outcome(0, "cancelled argument b\n", "")
    text = "cancelled argument a, which is leased, and removed when its lease ends\n"
    assert cli("cancel arg a") == Outcome(0, text, "")
    assert cli("cancel tag t").lines == [
        "removed 2 jobs tagged with t",
        "1 are leased, and removed when their leases end",
    ]
    assert json.loads(cli("cancel arg a --json").out) == {"removed": 0, "leased": 1, "arg": "a"}
    job.release()
    assert realm.status["total_jobs"] == 0


# pause, resume, limit, configure
@pytest.mark.parametrize(("kind", "name"), [("queue", "0"), ("tag", "a tag")])
def test_pause_holds_back_until_resume(cli: Run, realm: Realm, kind: str, name: str) -> None:
    realm.add("a", 0, tags=["a tag"])
    assert cli("pause", kind, name) == Outcome(0, f"paused {kind} {name}\n", "")
    assert realm.pull() == {}
    reply = json.loads(cli("resume", kind, name, "--json").out)
    assert (reply[kind], reply["settings"]["paused"]) == (0 if kind == "queue" else name, False)
    assert list(realm.pull()) == ["a"]


def test_limit_sets_shows_and_takes_away(cli: Run, realm: Realm) -> None:
    unlimited = ["max_leased  none", "rate        none", "paused      false"]
    for of in ("queue 3", "tag t"):
        realm.add("a", 3)
        assert cli(f"limit {of}").lines == [f"Limits of {of}:", *unlimited]
        assert cli(f"limit {of} --max-leased=2 --rate=0.5").lines[1:3] == ["max_leased  2", "rate        0.5"]
        assert cli(f"limit {of} --max-leased=none").lines[1:3] == ["max_leased  none", "rate        0.5"]
        kind, name = of.split()
        reply = json.loads(cli(f"limit {of} --rate=none --json").out)
        assert (str(reply[kind]), reply["settings"].get("rate")) == (name, None)
        assert cli(f"limit {of}").lines[1:] == unlimited


def test_limit_of_leased_jobs_holds(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b", "c"):
        realm.add(job_id, 0, tags=["t"])
    cli("limit tag t --max-leased=2")
    assert len(cli("pull --count=3").lines) == 2


def test_configure_sets_what_is_named_and_shows_all(cli: Run, realm: Realm, realm_name: str) -> None:
    realm.add("a", 0)
    assert cli("configure").lines[0] == f"Settings of realm {realm_name}:"
    lines = cli("configure max_attempts=5 backoff.base=10s backoff.max=1h default_lease_time=2m").lines
    shown = dict(line.split(None, 1) for line in lines[1:])
    assert (shown["max_attempts"], shown["default_lease_time"], shown["keep_done"]) == ("5", "120", "none")
    assert (float(shown["backoff.base"]), float(shown["backoff.max"])) == (10, 3600)
    reply = json.loads(cli("configure backoff=none --json").out)
    assert reply == {"realm": realm_name, "settings": realm.get_config()}
    assert (reply["settings"]["backoff"], reply["settings"]["max_attempts"]) == (None, 5)


def test_configure_of_a_part_leaves_the_other_parts(cli: Run, realm: Realm) -> None:
    assert cli("configure keep_done.count=5").code == 0
    assert cli("configure keep_done.seconds=7d").code == 0
    assert realm.get_config()["keep_done"] == {"seconds": 604800, "count": 5}
    cli("configure keep_done.count=none")
    assert realm.get_config()["keep_done"] == {"seconds": 604800, "count": None}
    cli("configure keep_done.seconds=none")
    assert realm.get_config()["keep_done"] is None
    cli("configure backoff.base=5 backoff.factor=3")
    assert cli("configure backoff.max=60").code == 0
    assert realm.get_config()["backoff"] == {"base": 5, "factor": 3, "max": 60, "jitter": 0.5}
    assert cli("configure backoff.factor=none").code == 0
    assert realm.get_config()["backoff"]["factor"] == 2
    assert cli("configure queue 7 backoff.base=1").code == 0
    assert cli("configure queue 7 backoff.max=9").code == 0
    assert realm.get_queue(7)["settings"]["backoff"] == {"base": 1, "factor": 2, "max": 9, "jitter": 0.5}
    assert cli("configure", 'backoff={"base":1}').code == 0
    assert realm.get_config()["backoff"] == {"base": 1, "factor": 2, "max": 3600, "jitter": 0.5}


def test_configure_of_a_part_of_nothing_is_wrong_usage(cli: Run) -> None:
    failed = cli("configure backoff.max=60")
    assert (failed.code, failed.err) == (2, "restq: backoff.base: this field is required\n")
    assert cli("configure", 'backoff={"base":1}', "backoff.max=60").code == 2


def test_resume_of_queue_that_is_not_there_makes_none(cli: Run, realm: Realm) -> None:
    realm.add("a", 0)
    assert cli("resume queue 1234").code == 3
    assert [queue["queue_id"] for queue in realm.list_queues()] == [0]
    assert cli("resume tag t").code == 0


def test_configure_queue_or_tag_sets_theirs(cli: Run, realm: Realm) -> None:
    assert "lease_time  1800" in cli("configure queue 3 lease_time=30m paused=true").lines
    assert realm.get_queue(3)["settings"]["paused"] is True
    assert cli("configure queue 3").lines[0] == "Settings of queue 3:"
    assert cli("configure tag t rate=2").code == 0
    assert realm.get_tag("t")["settings"]["rate"] == 2
