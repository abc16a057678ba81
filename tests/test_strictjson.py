import json
import math

from physiofast.support.strictjson import strict


def test_what_json_has_no_number_for_is_null():
    value = {"a": math.nan, "b": [math.inf, (1.25, -math.inf)], "c": {"d": None, "e": True, "f": "nan", "g": 2**70}}
    found = json.loads(json.dumps(strict(value), allow_nan=False))
    assert found == {"a": None, "b": [None, [1.25, None]], "c": {"d": None, "e": True, "f": "nan", "g": 2**70}}


def test_digits_are_those_of_floats_alone():
    value = {"a": [1234.567, 0.000123456], "b": 1234567}
    assert strict(value, digits=4) == {"a": [1235.0, 0.0001235], "b": 1234567}
