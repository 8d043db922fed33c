"""Credentials in texts are hidden. tests/eval_utils/test_endpoint.py checks files and terminal."""

import pytest

from run_utils.redaction import address_secrets, hide, redact, redact_command

ADDRESS = "http://ada:PASSW0RD@127.0.0.1:8000/v1?api-version=SECRET7&key=KEY777"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (ADDRESS, "http://***@127.0.0.1:8000/v1?***"),
        ("https://host/v1#access=SECRET7", "https://host/v1#***"),
        ("https://:PASSW0RD@host/v1", "https://***@host/v1"),
        ("https://ada:PASS/W0RD@host:80/v1", "https://***@host:80/v1"),
        ("https://ada:P%40SSW0RD@[::1]:80/v1", "https://***@[::1]:80/v1"),
        ("ada:PASSW0RD@host:8000/v1", "***@host:8000/v1"),
        ("https://host/4f9a8b7c6d5e4f3a2b1c/v1", "https://host/***/v1"),
        ("Cannot reach https://ada:PASSW0RD@host/v1, tried once", "Cannot reach https://***@host/v1, tried once"),
        ("Authorization: Bearer abc-123", "Authorization: Bearer ***"),
        ("bad key Basic YWRhOlBBU1NXMFJE", "bad key Basic ***"),
        ("sk-proj-4f9a8b7c6d5e4f3a2b1c", "***"),
        ("hf_" + "aB3" * 11, "***"),
        ("--api_key=PASSW0RD", "--api_key=***"),
        # No credentials: unchanged.
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("https://host:8000/@scope/model", "https://host:8000/@scope/model"),
        ("ada@example.com", "ada@example.com"),
        ("--batch_tokens=65536", "--batch_tokens=65536"),
        (
            "--model_revision=9c925d64d72725edaf899c6cb9c377fd0709d9c5",
            "--model_revision=9c925d64d72725edaf899c6cb9c377fd0709d9c5",
        ),
        ("runs/sk-learning_rate/hf_adapter", "runs/sk-learning_rate/hf_adapter"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text, redacted):
    assert redact(text) == redacted
    assert redact({"command": ["x", text]}) == {"command": ["x", redacted]}
    assert redact(redacted) == redacted


def test_a_command_keeps_its_words():
    assert redact_command(["evaluate.py", "--endpoint", ADDRESS, "--api_key", "KEY777", "--seed", "3"]) == [
        *("evaluate.py", "--endpoint", "http://***@127.0.0.1:8000/v1?***", "--api_key", "***", "--seed", "3")
    ]


def test_keys_in_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "planted words")
    monkeypatch.setenv("SOME_KEY", "x")  # too short to hide: many words have an x
    assert redact("Invalid: planted words, exactly") == "Invalid: ***, exactly"


def test_an_address_gives_its_secrets_in_each_form():
    secrets = address_secrets("http://ada:P%40SSW0RD@host/v1?key=KEY%20777&plain#frag")
    assert {"P%40SSW0RD", "P@SSW0RD", "KEY%20777", "KEY 777", "plain", "frag", "YWRhOlBAU1NXMFJE"} <= set(secrets)
    assert address_secrets("http://host:8000/v1") == address_secrets("http://host/v1&beta") == []


def test_secrets_are_hidden_in_values_and_nothing_else_changes():
    value = {"a": 5, "b": [None, True, "key PLANTED77, again PLANTED77"], "http://ada:PASSW0RD@host": 0.5}
    assert hide(value, ["PLANTED77"]) == value | {"b": [None, True, "key ***, again ***"]}
