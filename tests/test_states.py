"""The comparison that the crash tests use can fail."""

import pytest
import torch
from river import drift, linear_model, preprocessing
from states import assert_same_state

from streamadapt.state.river_pickle import dumps_river, loads_river


def trained(last):
    model = preprocessing.StandardScaler() | linear_model.LinearRegression()
    for i in range(50):
        model.learn_one({"a": float(i), "b": 1.0 / (i + 1)}, 2.0 * i)
    model.learn_one({"a": 1.0, "b": 1.0}, last)
    return model


def test_a_round_trip_is_the_same_state():
    """Its pickle's bytes differ, though."""
    blob = dumps_river(trained(3.0))
    again = dumps_river(loads_river(blob))
    assert_same_state({"x": blob}, {"x": again})


def test_one_bit_of_difference_is_found():
    """In a tensor, in a number, in a river model, in a detector."""
    detectors = [drift.ADWIN(), drift.ADWIN()]
    for i in range(100):
        detectors[0].update(i % 3)
        detectors[1].update(i % 3 + (i == 50) * 1e-9)
    pairs = [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (1.0, 1.0 + 2**-52),
        (dumps_river(trained(3.0)), dumps_river(trained(3.0 + 2**-40))),
        (dumps_river(detectors[0]), dumps_river(detectors[1])),
    ]
    for one, other in pairs:
        with pytest.raises(AssertionError):
            assert_same_state({"x": one}, {"x": other})
