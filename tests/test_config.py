"""Where configured values come from, what is refused and how, and that conf/restq.conf documents it all."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from restq.bodies import LEASE_SECONDS_MAX
from restq.config import BUILT_IN, OPTIONS, SECTIONS, Config, ConfigError, load, load_default

CONF = Path(__file__).parent.parent / "conf" / "restq.conf"
ENVIRON = {"HOME": "/home/ann"}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def refusal(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, *files: str) -> str:
    """The message of the ConfigError that loading this raises."""
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, {**ENVIRON, **(environ or {})}, files)
    return str(caught.value)


def test_load_of_nothing_gives_documented_defaults() -> None:
    config = load({}, ENVIRON, ["/nowhere/restq.conf"])
    assert (config.webapp.host, config.webapp.port, config.webapp.debug, config.webapp.quiet) == (
        "127.0.0.1",
        8586,
        False,
        False,
    )
    assert config.webapp.shards >= 1
    assert config.webapp.body_bytes_max == 32 * 1024 * 1024
    assert (config.realms.default_lease_time, config.realms.realms_config_root) == (600, "/home/ann/.restq")
    assert (config.cli.realm, config.cli.queue_id, config.cli.tags) == ("default", 0, ())
    assert (config.client.uri, config.client.count) == ("http://localhost:8586/", 5)
    assert set(config.sources.values()) == {BUILT_IN}


def test_load_of_every_source_lets_the_later_win(tmp_path: Path) -> None:
    system = write(tmp_path / "system", "webapp: {port: 1, host: a, shards: 3, frontends: 4}")
    user = write(tmp_path / "user", "webapp: {port: 2, host: b, shards: 5}")
    environ = {**ENVIRON, "RESTQ_WEBAPP_PORT": "3", "RESTQ_WEBAPP_HOST": "c"}
    config = load({"webapp.port": 4, "webapp.shards": None}, environ, [system, user])
    assert config.webapp == dataclasses.replace(config.webapp, port=4, host="c", shards=5, frontends=4)
    assert config.sources["webapp.port"] == "flag HOST:PORT"
    assert config.sources["webapp.host"] == "environment variable RESTQ_WEBAPP_HOST"
    assert config.sources["webapp.shards"] == user
    assert config.sources["webapp.frontends"] == system
    assert config.sources["webapp.debug"] == BUILT_IN


def test_load_default_reads_home_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / ".restq.conf", "cli: {realm: mine, tags: [x]}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESTQ_CLI_TAGS", "a, b")
    config = load_default({"client.count": "7"})
    assert (config.cli.realm, config.cli.tags, config.client.count) == ("mine", ("a", "b"), 7)


def test_load_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    load_default()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "# only a comment\n", "webapp:\n  # port: 1\n", "null"])
def test_load_of_file_without_values_changes_nothing(tmp_path: Path, text: str) -> None:
    assert load({}, ENVIRON, [write(tmp_path / "conf", text)]) == load({}, ENVIRON, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("Yes", True),
        ("ON", True),
        ("1", True),
        ("false", False),
        ("no", False),
        ("off", False),
        ("0", False),
    ],
)
def test_load_of_boolean_variable_knows_eight_words(text: str, value: bool) -> None:
    assert load({}, {**ENVIRON, "RESTQ_WEBAPP_DEBUG": text}, []).webapp.debug is value


@pytest.mark.parametrize("text", ["", "maybe", "2", "truee", "None"])
def test_load_of_boolean_variable_with_another_word_is_refused(text: str) -> None:
    message = refusal(environ={"RESTQ_WEBAPP_DEBUG": text})
    assert message.startswith(f"environment variable RESTQ_WEBAPP_DEBUG: webapp.debug is {text!r}, expected true or")


@pytest.mark.parametrize(
    ("yaml_text", "said"),
    [
        ("webapp: {port: 65536}", "webapp.port is 65536, expected a whole number from 0 to 65535"),
        ("webapp: {port: -1}", "webapp.port is -1"),
        ("webapp: {port: '80'}", "webapp.port is '80'"),
        ("webapp: {port: true}", "webapp.port is True"),
        ("webapp: {port: 1.5}", "webapp.port is 1.5"),
        ("webapp: {port: }", "webapp.port is null"),
        ("webapp: {port: [1]}", "webapp.port is [1]"),
        ("webapp: {port: 1" + 400 * "0" + "}", "webapp.port is 1000"),
        ("webapp: {host: ''}", "webapp.host is ''"),
        ("webapp: {host: 1}", "webapp.host is 1"),
        ("webapp: {debug: 1}", "webapp.debug is 1, expected true or false"),
        ("webapp: {debug: 'no'}", "webapp.debug is 'no'"),
        ("webapp: {shards: 0}", "webapp.shards is 0"),
        ("realms: {default_lease_time: -1}", "realms.default_lease_time is -1, expected a number from 0 to 1000000000"),
        ("realms: {default_lease_time: 1000000001}", "realms.default_lease_time is 1000000001"),
        ("realms: {default_lease_time: .nan}", "realms.default_lease_time is nan"),
        ("realms: {default_lease_time: .inf}", "realms.default_lease_time is inf"),
        ("realms: {default_lease_time: 600s}", "realms.default_lease_time is '600s'"),
        ("client: {uri: localhost:8586}", "client.uri is 'localhost:8586', expected an address such as"),
        ("client: {uri: 'http://'}", "client.uri is 'http://'"),
        ("client: {uri: 'http://h:port/'}", "client.uri is 'http://h:port/'"),
        ("client: {uri: 'http://[::1/'}", "client.uri is 'http://[::1/'"),
        ("client: {uri: 'http://a..b/'}", "client.uri is 'http://a..b/'"),
        ("client: {uri: 'http://h/?a'}", "client.uri is 'http://h/?a'"),
        ("client: {uri: 'ftp://h/'}", "client.uri is 'ftp://h/'"),
        ("client: {count: 0}", "client.count is 0"),
        ("client: {timeout_seconds: 0}", "client.timeout_seconds is 0"),
        ("cli: {tags: 5}", "cli.tags is 5, expected a list of tags"),
        ("cli: {tags: [5]}", "cli.tags is [5]"),
        ("cli: {queue_id: 1.5}", "cli.queue_id is 1.5"),
        ("cli: {queue_id: true}", "cli.queue_id is True"),
        ("webapp: 5", "section webapp is 5, expected a mapping"),
        ("webapp: [port]", "section webapp is ['port']"),
        ("- webapp", "the file is ['webapp'], expected a mapping"),
        ("webap: {port: 1}", "there is no section 'webap', only webapp, realms, cli, client"),
        ("5: {port: 1}", "there is no section 5"),
        ("webapp: {prt: 1}", "there is no option webapp.prt; is webapp.port meant?"),
        ("webapp: {5: 1}", "there is no option webapp.5"),
        ("webapp: {port: 1", "is not YAML: "),
        ("webapp: !!python/object/apply:os.getcwd []", "is not YAML: "),
        ("webapp:\n  port: 1\n  host: a\n  port: 2", "'webapp.port' stands there twice, in lines 2 and 4"),
        ("webapp: {port: 1}\nwebapp: {port: 2}", "'webapp' stands there twice, in lines 1 and 2"),
        ("a: b: c", "is not YAML: mapping values are not allowed here (line 1, column 5)"),
        ("a: \x01", "is not YAML: unacceptable character #x0001: special characters are not allowed"),
        ("\tx", "is not YAML: "),
        ("[" * 100_000, "is not YAML: "),
        ("webapp: {port: 2026-13-45}", "is not YAML: month must be"),
    ],
)
def test_load_of_wrong_file_names_file_path_and_value(tmp_path: Path, yaml_text: str, said: str) -> None:
    name = write(tmp_path / "restq.conf", yaml_text)
    message = refusal(None, None, name)
    assert message.startswith(f"{name}: {said}")
    assert "\n" not in message
    assert "<unicode string>" not in message


def test_load_of_lease_time_takes_the_limits_of_the_server() -> None:
    for seconds in (0, LEASE_SECONDS_MAX):
        assert load({"realms.default_lease_time": seconds}, ENVIRON, []).realms.default_lease_time == seconds
    assert OPTIONS["realms.default_lease_time"].high == LEASE_SECONDS_MAX


def test_load_of_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    name = tmp_path / "restq.conf"
    name.write_bytes(b"webapp: \xff\xfe")
    assert refusal(None, None, str(name)) == f"{name}: cannot be read: it is not UTF-8 text"


def test_load_of_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(None, None, str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"


def test_load_of_wrong_variable_says_which_is_meant() -> None:
    message = refusal(environ={"RESTQ_WEBAPP_PRT": "1"})
    assert message == "RESTQ_WEBAPP_PRT: no option has this environment variable; is RESTQ_WEBAPP_PORT meant?"


def test_load_of_variables_of_others_leaves_them_alone() -> None:
    others = {"RESTQ_HOME": "x", "RESTQ_CONFIG": "y", "RESTQ_": "", "restq_webapp_port": "z"}
    assert load({}, {**ENVIRON, **others}, []) == load({}, ENVIRON, [])


def test_load_of_wrong_flag_names_the_flag() -> None:
    assert refusal({"client.count": "many"}).startswith("flag --count: client.count is 'many', expected a whole number")


@pytest.mark.parametrize("text", ["1_0", " 1", "+1", "0x1", "\uff11", ""])
def test_load_of_integer_variable_takes_digits_only(text: str) -> None:
    assert "webapp.port is" in refusal(environ={"RESTQ_WEBAPP_PORT": text})


@pytest.mark.parametrize(("text", "value"), [("5", 5), ("0.5", 0.5), ("1e3", 1000.0)])
def test_load_of_number_variable_takes_fractions(text: str, value: float) -> None:
    assert load({}, {**ENVIRON, "RESTQ_CLIENT_TIMEOUT_SECONDS": text}, []).client.timeout_seconds == value


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("-7", -7), ("seven", "seven")])
def test_load_of_queue_variable_makes_decimals_integers(text: str, value: int | str) -> None:
    assert load({}, {**ENVIRON, "RESTQ_CLI_QUEUE_ID": text}, []).cli.queue_id == value


@pytest.mark.parametrize("text", ["tags: a,b", "tags: [a, b]", "tags: ' a , b '"])
def test_load_of_tags_takes_list_and_commas(tmp_path: Path, text: str) -> None:
    config = load({}, ENVIRON, [write(tmp_path / "conf", f"cli:\n  {text}\n")])
    assert config.cli.tags == ("a", "b")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://h", "http://h/"),
        ("https://h:1/queue", "https://h:1/queue/"),
        ("http://[::1]:8586/", "http://[::1]:8586/"),
    ],
)
def test_load_of_uri_ends_it_with_a_slash(given: str, used: str) -> None:
    assert load({"client.uri": given}, ENVIRON, []).client.uri == used


@pytest.mark.parametrize(
    ("given", "used"),
    [("~", "/home/ann"), ("~/q", "/home/ann/q"), ("/srv/q", "/srv/q"), ("a~b", "a~b"), ("./~", "./~")],
)
def test_load_of_data_directory_expands_a_leading_tilde(given: str, used: str) -> None:
    assert load({"realms.realms_config_root": given}, ENVIRON, []).realms.realms_config_root == used


@pytest.mark.parametrize("home", ["", "/", "//"])
def test_load_in_home_that_is_the_root_gives_data_directory_one_slash(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert load({}, {"HOME": home}, []).realms.realms_config_root == "/.restq"


def test_get_of_unknown_path_raises_key_error() -> None:
    with pytest.raises(KeyError):
        Config()["webapp.prt"]


def test_table_of_options_is_documented_and_its_defaults_pass_their_own_checks() -> None:
    for option in OPTIONS.values():
        assert option.doc
        assert option.default == option.read(option.default, "default", from_text=False)
        if option.kind in ("integer", "number"):
            assert option.unit
            assert option.low is not None
            assert option.high is not None


# conf/restq.conf: the table of options, for people.
def test_load_of_shipped_file_changes_nothing() -> None:
    assert load({}, ENVIRON, [str(CONF)]) == load({}, ENVIRON, [])


def test_load_of_shipped_file_with_every_option_switched_on_gives_the_defaults(tmp_path: Path) -> None:
    switched_on = re.sub(r"^(  )#([a-z_]+:)", r"\1\2", CONF.read_text(), flags=re.MULTILINE)
    found = yaml.safe_load(switched_on)
    assert {f"{section}.{key}" for section, keys in found.items() for key in keys} == set(OPTIONS)
    config = load({}, ENVIRON, [write(tmp_path / "conf", switched_on)])
    defaults = load({}, ENVIRON, [])
    for path, option in OPTIONS.items():
        if option.default_text is None:
            assert config[path] == defaults[path], path


def test_shipped_file_gives_default_unit_and_reason_of_every_option() -> None:
    paragraphs = _paragraphs()
    assert list(paragraphs) == list(OPTIONS)
    for path, option in OPTIONS.items():
        comment = paragraphs[path]
        default = option.default_text or f"default {yaml.safe_dump(_plain(option.default)).splitlines()[0]}"
        assert default in comment, f"{path}: {default!r} is not in {comment!r}"
        assert option.unit in comment, f"{path}: the unit {option.unit!r} is not in {comment!r}"
        assert len(comment.split()) >= 12, f"{path}: say why"


def _paragraphs() -> dict[str, str]:
    """Path of each option -> the comment above it, as one line."""
    found: dict[str, str] = {}
    section = ""
    comment: list[str] = []
    for line in CONF.read_text().splitlines():
        if head := re.fullmatch(r"([a-z]+):", line):
            section, comment = head[1], []
            assert section in SECTIONS
        elif option := re.match(r"  #([a-z_]+):", line):
            found[f"{section}.{option[1]}"] = " ".join(comment)
            comment = []
        elif line.startswith("  # "):
            comment.append(line[4:])
        else:
            comment = []
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
