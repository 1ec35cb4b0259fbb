"""Whose share is how large: by name, by group, by anyone and by default."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.runs.shares import UNLIMITED, Share, ShareRule, ShareRules

RULES = ShareRules(
    default=ShareRule(max_active=1, max_queued=10),
    names={"ada": ShareRule(max_active=8), "bob": ShareRule(max_queued=0, max_history_bytes=UNLIMITED)},
    groups={
        "small": ShareRule(max_active=2, max_queued=20, max_history_bytes=100),
        "large": ShareRule(max_active=4, max_history_bytes=200),
        "free": ShareRule(max_active=UNLIMITED),
    },
    anyone=ShareRule(max_history_bytes=50),
)
TABLE = {
    "no rule": ("x", [], Share(1, 10, 50)),
    "unknown groups": ("x", ["other", "ada"], Share(1, 10, 50)),
    "a name": ("ada", [], Share(8, 10, 50)),
    "another case": ("Ada", [], Share(1, 10, 50)),
    "a group": ("x", ["small"], Share(2, 20, 100)),
    "the largest of groups, each limit on its own": ("x", ["large", "small"], Share(4, 20, 200)),
    "unlimited is the largest": ("x", ["small", "free"], Share(None, 20, 100)),
    "a name before groups": ("ada", ["free", "small"], Share(8, 20, 100)),
    "none, and unlimited, by name": ("bob", ["small"], Share(2, 0, None)),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_limit_by_its_rule(name: str) -> None:
    """The name decides, then the largest of the groups, then anyone, then the default."""
    owner, groups, share = TABLE[name]
    assert RULES.share(owner, groups) == share


def test_no_rule_is_no_limit() -> None:
    """A server without settings limits nobody, and measures no history."""
    assert ShareRules().share("x", ["y"]) == Share()
    assert not ShareRules().limit_history


@pytest.mark.parametrize("place", ["default", "anyone", "names", "groups"])
def test_whether_a_history_is_limited(place: str) -> None:
    """Any rule with a size asks for the measurement; lifting a limit does not."""

    def rules(size: float) -> ShareRules:
        rule = ShareRule(max_history_bytes=size)
        value: Any = {"x": rule} if place in {"names", "groups"} else rule
        return ShareRules(**{place: value})

    assert rules(1).limit_history
    assert not rules(UNLIMITED).limit_history


VALUES = st.none() | st.integers(0, 2**63 - 1) | st.just(UNLIMITED)
A_RULE = st.builds(ShareRule, VALUES, VALUES, VALUES)


@given(A_RULE, A_RULE, st.dictionaries(st.sampled_from("abc"), A_RULE), st.permutations("abc"))
def test_the_order_of_groups_does_not_matter(
    default: ShareRule, anyone: ShareRule, groups: dict[str, ShareRule], order: list[str]
) -> None:
    """A caller has one share, however its token lists its groups, and values stay exact."""
    rules = ShareRules(default, {}, groups, anyone)
    share = rules.share("x", order)
    assert share == rules.share("x", "abc")
    given_values = {rule.max_active for rule in (default, anyone, *groups.values())}
    assert share.max_active is None or share.max_active in given_values
