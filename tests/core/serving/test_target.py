"""From what the user gives to a server, or to an endpoint that somebody else runs."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from fourfold.cli.app import app
from fourfold.demo import model_path
from fourfold.errors import ConfigError, EvaluationError, ModelError, ServerError, UnknownNameError
from fourfold.evaluate.target import server_version
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.serving.foreground import plan_of
from fourfold.serving.target import attach, choose_server, context_tokens, find_target, temporary_options


def test_one_model_is_attached_to_and_several_are_a_choice(endpoint, script):
    script.models = [{"id": "a", "root": "/models/a", "max_model_len": 4096}]
    found = attach(endpoint.url)
    assert (found.model, found.root, found.owned, context_tokens(found)) == ("a", "/models/a", False, 4096)
    script.models.append({"id": "b"})
    with pytest.raises(ServerError, match="serves a, b; choose one with --served-model-name"):
        attach(endpoint.url)
    chosen = attach(endpoint.url, "b")
    assert (chosen.model, chosen.root, context_tokens(chosen)) == ("b", None, None)
    script.models = []
    with pytest.raises(ServerError, match="serves no model; choose one"):
        attach(endpoint.url)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:abc/v1", r" \(Invalid port: 'abc'\)"),
        ("http://127.0.0.1:99999/v1", r" \(Port out of range 0-65535\)"),
        ("http://[::1", r" \(Invalid IPv6 URL\)"),
        ("http://xn--/v1", r" \(Malformed A-label.*\)"),
        ("http:///v1", ""),
    ],
)
def test_what_is_no_address_is_told_as_that(address, reason):
    done = CliRunner().invoke(app, ["smoke", address, "--server", "vllm-cpu"])
    assert done.exit_code == 2, done.exception
    message = rf"fourfold: {re.escape(address)}: not an address such as http://127\.0\.0\.1:8888/v1{reason}\n"
    assert re.fullmatch(message, done.stderr)


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("socks5://127.0.0.1:9", r"Using SOCKS proxy, but the 'socksio' package is not installed"),
        ("ftp://127.0.0.1:9", r"Unknown scheme for proxy URL .*"),
        ("http://127.0.0.1:abc", r"Invalid port: 'abc'"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_not_asked_for_this_machine(endpoint, monkeypatch, proxy, reason):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    message = rf"^http://served\.invalid/v1: the environment names a proxy that cannot be used \({reason}\); give ALL_"
    with pytest.raises(EvaluationError, match=message):
        attach("http://served.invalid/v1")
    assert attach(endpoint.url).model == "m"


def test_a_servers_version_is_asked_past_a_proxy_and_with_the_key(endpoint, script, proxy, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    proxy("http://127.0.0.1:9")
    assert server_version(endpoint) == "0.1"
    assert script.keys == ["Bearer secret"]


def test_an_address_takes_no_options_of_a_server(registry, endpoint):
    with pytest.raises(ConfigError, match="is running already; dtype, port cannot be changed"):
        find_target(endpoint.url, registry, options={"port": 1, "dtype": "auto"})
    target = find_target(endpoint.url, registry, options={"served_model_name": "m"}, tokenizer="some/hub-id")
    assert target.endpoint.root == "some/hub-id"
    with pytest.raises(ConfigError, match="is running already; there is nothing to plan"):
        plan_of(target, docker=False)


def test_the_server_is_the_machines_or_the_named_ones_or_the_gpus(registry):
    assert choose_server(registry, "vllm").name == "vllm"
    assert choose_server(registry, None, gpu="gb10").name == "vllm"
    with pytest.raises(UnknownNameError, match="unknown server 'sglang'; known: vllm, vllm-cpu"):
        choose_server(registry, "sglang")
    with pytest.raises(ConfigError, match="no server for this machine is installed; install fourfold-vllm"):
        choose_server(Registry(build_plugin_manager([])), None)


def test_what_is_no_model_is_refused_before_a_server_starts(registry):
    with pytest.raises(ModelError, match="no-such: no such model; give 'demo', a folder, or a hub id"):
        find_target("no-such", registry)
    with pytest.raises(ConfigError, match=r"server vllm-cpu\.prot: unknown key"):
        find_target("demo", registry, server="vllm-cpu", options={"prot": 1})


def test_the_demo_is_called_so(registry):
    target = find_target("demo", registry, server="vllm-cpu")
    assert (target.checkpoint, target.server.options.served_model_name) == (model_path(), "demo")


def test_a_server_for_one_command_takes_a_free_port_unless_told():
    assert temporary_options("demo", {"dtype": "auto"}, "x", streams=8) == {
        "port": 0, "max_num_seqs": 8, "served_model_name": "x", "dtype": "auto",
    }  # fmt: skip
    assert temporary_options("demo", {"port": 7, "max_num_seqs": 2}, None, streams=8) == {"port": 7, "max_num_seqs": 2}
    assert temporary_options("http://x/v1", {"port": 7}, "x") == {"served_model_name": "x"}
