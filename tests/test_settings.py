"""Settings: how long a job rests, and what rows say of what was configured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restq.shards import settings
from restq.shards.settings import PLAIN_QUEUE, PLAIN_REALM, Backoff, LimitSettings, QueueSettings, RealmSettings


@pytest.mark.parametrize(("nacks", "expected"), [(1, 2.0), (2, 6.0), (3, 18.0), (4, 50.0), (5, 50.0)])
def test_delay_of_backoff_grows_up_to_its_maximum(nacks: int, expected: float) -> None:
    assert Backoff(2.0, 3.0, 50.0, 0.0).delay(nacks, 1.0) == expected


@pytest.mark.parametrize(
    ("jitter", "chance", "expected"), [(0.0, 1.0, 8.0), (0.5, 0.0, 8.0), (0.5, 1.0, 4.0), (1.0, 1.0, 0.0)]
)
def test_delay_of_backoff_loses_at_most_its_jitter(jitter: float, chance: float, expected: float) -> None:
    assert Backoff(8.0, jitter=jitter).delay(1, chance) == expected


def test_delay_of_backoff_after_any_number_of_nacks_is_its_maximum() -> None:
    assert Backoff(1.0, 1000.0, 60.0, 0.0).delay(1_000_000_000, 0.0) == 60.0


@given(
    st.floats(0, 1e9), st.floats(1, 1000), st.floats(0, 1e9), st.floats(0, 1), st.integers(1, 10**9), st.floats(0, 1)
)
def test_delay_of_any_backoff_lies_within_its_limits(
    base: float, factor: float, most: float, jitter: float, nacks: int, chance: float
) -> None:
    assert 0 <= Backoff(base, factor, most, jitter).delay(nacks, chance) <= most


limits = st.builds(LimitSettings, st.none() | st.integers(1, 2**53), st.none() | st.floats(1e-6, 1e6), st.booleans())
backoffs = st.none() | st.builds(Backoff, st.floats(0, 10), st.floats(1, 10), st.floats(0, 10), st.floats(0, 1))


@given(limits)
def test_limits_from_their_row_are_what_they_were(said: LimitSettings) -> None:
    assert settings.read_limits(settings.text_of(said)) == said


@given(st.builds(QueueSettings, st.integers(0, 9), backoffs, limits))
def test_settings_of_queue_from_their_row_are_what_they_were(said: QueueSettings) -> None:
    assert settings.read_queue(settings.text_of(said)) == said


@given(
    st.builds(
        RealmSettings,
        *(st.integers(0, 9), st.integers(0, 9), backoffs, st.integers(0, 9), st.integers(0, 9)),
        *(st.floats(0, 9), st.integers(0, 9), st.floats(0, 9)),
    )
)
def test_settings_of_realm_from_their_row_are_what_they_were(said: RealmSettings) -> None:
    assert settings.read_realm(settings.text_of(said)) == said


def test_settings_that_nobody_set_are_empty_in_rows() -> None:
    assert settings.text_of(PLAIN_QUEUE) == settings.text_of(PLAIN_REALM) == settings.text_of(LimitSettings()) == "{}"
    assert settings.read_queue("{}") is PLAIN_QUEUE
    assert settings.read_realm("{}") is PLAIN_REALM


def test_results_are_kept_where_seconds_or_count_are_set() -> None:
    kept = [RealmSettings(keep_seconds=1.0).keeps_results, RealmSettings(keep_count=1).keeps_results]
    assert (kept, PLAIN_REALM.keeps_results) == ([True, True], False)
