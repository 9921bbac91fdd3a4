"""Wrapping and unwrapping: order, identity, and refusal."""

from __future__ import annotations

from typing import Any

import pytest

from mp_hooks import backbones
from mp_hooks.errors import MotionPromptError
from mp_hooks.hooks import Hooks


class Host:
    def value(self, x: int) -> int:
        return x


def adding(amount: int) -> Any:
    return lambda original, *args: original(*args) + amount


def test_instance_hook_leaves_no_attribute_behind() -> None:
    host = Host()
    hooks = Hooks()
    hooks.wrap(host, "value", adding(1))
    assert host.value(1) == 2
    assert Host().value(1) == 1
    hooks.remove()
    assert vars(host) == {}
    assert host.value(1) == 1


def test_class_hook_restores_the_very_function() -> None:
    before = vars(Host)["value"]
    hooks = Hooks()
    hooks.wrap(Host, "value", adding(1))
    assert Host().value(1) == 2
    hooks.remove()
    assert vars(Host)["value"] is before


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_patches_of_one_site_leave_in_any_order(first_out: int) -> None:
    before = vars(Host)["value"]
    patches = [Hooks(), Hooks()]
    for hooks, amount in zip(patches, (1, 10), strict=True):
        hooks.wrap(Host, "value", adding(amount))
    assert Host().value(0) == 11
    patches[first_out].remove()
    assert Host().value(0) == (10, 1)[first_out]
    patches[1 - first_out].remove()
    assert vars(Host)["value"] is before


def test_removing_twice_is_removing_once() -> None:
    hooks = Hooks()
    hooks.wrap(Host, "value", adding(1))
    hooks.remove()
    hooks.remove()
    assert Host().value(0) == 0


def test_nothing_to_hook_is_an_error() -> None:
    with pytest.raises(MotionPromptError, match=r"there is no Host\.missing"):
        Hooks().wrap(Host(), "missing", adding(1))


def test_unknown_hosts_and_names_list_what_there_is() -> None:
    with pytest.raises(MotionPromptError, match=r"no adapter knows .*Host.*videocrafter2"):
        backbones.apply_patch(Host())
    with pytest.raises(MotionPromptError, match="videocrafter2"):
        backbones.adapter_class("sora")


def test_every_registered_adapter_loads_and_carries_its_name() -> None:
    for name in backbones.BACKBONES:
        assert backbones.adapter_class(name).name == name
