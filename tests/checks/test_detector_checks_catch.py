"""Each check of a detector rejects an object that breaks only the checked property."""

from __future__ import annotations

from typing import Any

import pytest

from streamadapt.drift.monitor import DriftMonitor
from streamadapt.testing.checks import detectors


class Deaf(DriftMonitor):
    """Never reports a drift."""

    def update(self, value: float) -> bool:
        super().update(value)
        return False


class Jumpy(DriftMonitor):
    """Reports a drift every hundred values."""

    count = 0

    def update(self, value: float) -> bool:
        self.count += 1
        return super().update(value) or self.count % 100 == 0


class DislikesStillness(DriftMonitor):
    """Reports a constant as a drift."""

    last, same = 0.5, 0

    def update(self, value: float) -> bool:
        self.same = self.same + 1 if value == self.last else 0
        self.last = value
        return super().update(value) or self.same == 100


class OpensTheDoor(DriftMonitor):
    """Passes NaN on to its detector."""

    def update(self, value: float) -> bool:
        assert self.detectors is not None
        return self.detectors.update(0, value)


class AlarmsOnNan(DriftMonitor):
    """Reports a missing value as a drift."""

    def update(self, value: float) -> bool:
        return super().update(value) or value != value


class StartsAgain(DriftMonitor):
    """Is reset by loading a state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ForgetsTheBoost(DriftMonitor):
    """Loses the level of the boost."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        assert self.boost is not None
        self.boost.level = 1.0


class BoostsForever(DriftMonitor):
    """Its boost never decays."""

    def update(self, value: float) -> bool:
        assert self.boost is not None
        self.boost.half_life = 1e12
        fired = super().update(value)
        self.boost.half_life = 10.0
        return fired


class NeverBoosts(DriftMonitor):
    """Its boost stays at one."""

    def update(self, value: float) -> bool:
        fired = super().update(value)
        assert self.boost is not None
        self.boost.level = 1.0
        return fired


DETECTORS: dict[str, list[type[DriftMonitor]]] = {
    "check_clear_jump_is_seen": [Deaf, Jumpy],
    "check_constant_input_is_quiet": [DislikesStillness],
    "check_nonfinite_input_is_refused": [OpensTheDoor, AlarmsOnNan],
    "check_detector_state_round_trips": [StartsAgain, ForgetsTheBoost],
    "check_boost_decays_to_one": [BoostsForever, NeverBoosts],
}


def test_every_check_has_its_broken_object() -> None:
    assert [c.__name__ for c in detectors.yield_detector_checks()] == list(DETECTORS)
    defined = {name for name in vars(detectors) if name.startswith("check_")}
    assert defined - {"check_detector"} == set(DETECTORS)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in DETECTORS.items() for kind in kinds]
)
def test_broken_detectors_are_caught(name: str, kind: type[DriftMonitor]) -> None:
    with pytest.raises(AssertionError):
        getattr(detectors, name)(lambda: kind("adwin", "loss", "boost", half_life=10.0))
