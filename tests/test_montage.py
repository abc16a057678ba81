import dataclasses
import json

import numpy as np
import pytest

from physiofast.montage import Channel, Montage, get_montage
from tests.cohort import MONTAGE


@pytest.mark.parametrize("patch_s", [0.55, 1.1, 1.15, 2.05, 2.2, 2.3, 2.55])
def test_decimal_fractions_of_seconds_are_whole_samples(patch_s):
    """100 Hz times 0.55 s are 55.00000000000001 samples."""
    rates = {"EEG": 100.0, "EOG": 100.0, "RESP": 100.0, "SPO2": 20.0}
    montage = dataclasses.replace(MONTAGE, rate_hz=rates, patch_s=patch_s, window_s=30 * patch_s)
    assert montage.patch_lengths == (round(100 * patch_s),) * 3 + (round(20 * patch_s),)
    assert montage.patches_per_window == 30


@pytest.mark.parametrize("patch_s", [0.555, 0.55001])
def test_patches_of_a_part_of_a_sample_are_refused(patch_s):
    rates = dict.fromkeys(MONTAGE.rate_hz, 100.0)
    with pytest.raises(ValueError, match="samples per .* s patch; choose a rate at which this is a whole number"):
        dataclasses.replace(MONTAGE, rate_hz=rates, patch_s=patch_s, window_s=30 * patch_s)


def test_windows_are_of_whole_patches():
    with pytest.raises(ValueError, match=r"window_s 6\.3 is not a whole number of patches of 1\.0 s"):
        dataclasses.replace(MONTAGE, window_s=6.3)
    bad = [(0.0, 6.0), (-1.0, 6.0), (float("nan"), 6.0), (1.0, float("inf")), (1.0, 0.0)]
    for patch_s, window_s in (*bad, (10**400, 10**400), (1e-320, 1e300), ("1", 6.0)):
        with pytest.raises(ValueError, match=r"(patch|window)_s must be a number of seconds above 0; found "):
            dataclasses.replace(MONTAGE, patch_s=patch_s, window_s=window_s)


@pytest.mark.parametrize("rate", ["16", True, 0.0, -1.0, float("nan"), float("inf"), 10**400])
def test_rates_are_numbers(rate):
    with pytest.raises(ValueError, match="rate_hz of EEG must be a number above 0; found "):
        dataclasses.replace(MONTAGE, rate_hz={**MONTAGE.rate_hz, "EEG": rate})


def test_rates_may_be_numbers_of_numpy_and_are_plain_ones_in_json():
    rates = {"EEG": np.int64(16), "EOG": np.float32(16), "RESP": np.float64(8), "SPO2": 2}
    montage = dataclasses.replace(MONTAGE, rate_hz=rates)
    assert montage.patch_lengths == MONTAGE.patch_lengths
    assert Montage.from_dict(json.loads(json.dumps(montage.to_dict()))) == montage == MONTAGE


def test_the_first_channel_that_fits_is_the_montages():
    montage, names = get_montage("cinc2018"), ("Belt", "Resp. Thorax", "Thorax", "SpO2", "Thor", "SaO2")
    chest, sao2 = montage.index("CHEST"), montage.index("SaO2")
    asked = []

    def only(*fitting):
        found = montage.resolve(names, lambda channel, i: asked.append((channel, i)) or i in fitting)
        return found.source[chest], found.source[sao2]

    first = montage.resolve(names)
    assert (first.source[chest], first.source[sao2]) == only(1, 2, 3, 4, 5) == only() == (2, 3)
    assert only(1, 4, 5) == (4, 5) and only(1) == (1, 3)
    assert first.ignored == ("Belt", "Resp. Thorax", "Thor", "SaO2")
    assert first.duplicates == {"Resp. Thorax": "CHEST", "Thor": "CHEST", "SaO2": "SaO2"}
    assert {channel for channel, _ in asked} == {chest, sao2}
    assert montage.resolve(("SaO2",), lambda channel, i: False).source[sao2] == 0


@pytest.mark.parametrize(
    ("channel", "names"),
    [
        ("E1-M2", ("E1", "EOG L", "LEOG", "EOG-Left", "Left EOG")),
        ("Chin1-Chin2", ("Chin L", "EMG Chin-L", "L Chin", "Chin Left", "left chin")),
        ("ABD", ("Effort ABD", "ABD Effort", "Abdominal Effort", "Abdominal Belt", "RIP Abdomen", "Abd")),
        (
            "CHEST",
            ("Effort THO", "THO", "Thoracic Effort", "Resp. Thorax", "Chest Effort", "RIP Thorax", "Thorax Belt"),
        ),
        ("AIRFLOW", ("Nasal Pressure", "Flow", "Nasal Flow")),
        ("SaO2", ("OSAT", "O2 Sat", "SpO2", "SpO2 %")),
    ],
)
def test_names_of_many_vendors(channel, names):
    montage = get_montage("cinc2018")
    for name in names:
        assert montage.resolve(("Leg L", name)).source[montage.index(channel)] == 1, name


@pytest.mark.parametrize("name", ["", " ", "..."])
def test_a_name_says_something(name):
    with pytest.raises(ValueError, match="name needs a letter or digit; found"):
        dataclasses.replace(get_montage("cinc2018"), channels=(Channel(name=name, modality="EEG"),))
