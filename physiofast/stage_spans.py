"""The periods that a recording's annotations assign a sleep stage to.

Texts say which annotations are stages (`physiofast/stages.py`); here it is how long each lasts, which of them are marks
of something else, and which texts that are not known stand in the place of a stage.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from physiofast.event_names import could_be_event
from physiofast.io.recording import Annotation, Recording
from physiofast.stages import EPOCH_S, UNSCORED, bare_stages_left_out, stage_codes, unknown_stages

MARK_S = 10
"""A stage that lasts less, in seconds, is a mark of something else (`REM` of an eye movement) if it is within another;
it divides the epochs of 20 and 30 s."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpan:
    """A period in one sleep stage, in samples of the annotation clock; its code is an index of `STAGES` or -1."""

    start: int
    stop: int
    code: int


def stage_spans(recording: Recording) -> list[StageSpan]:
    """The periods that the annotations assign a stage to, or mark as not scorable, in time order."""
    end = num_samples(recording)
    if recording.annotator == "arousal":
        return spans_of_changes([(a.sample, code) for a, code in scored_annotations(recording)], end)
    if recording.annotator == "st":
        return [st_span(annotation, code, recording) for annotation, code in scored_annotations(recording)]
    if recording.annotator in ("edf+", "nsrr", "eannot"):
        return _spans_with_durations(recording, end)
    return []


def spans_of_changes(changes: Sequence[tuple[int, int]], end: int) -> list[StageSpan]:
    """Convert change points (sample, code of the stage that begins) to spans; the last one lasts until `end`."""
    stops = [*(sample for sample, _ in changes[1:]), end]
    return [
        StageSpan(start=start, stop=stop, code=code)
        for (start, code), stop in zip(changes, stops, strict=False)  # if there are no changes, `end` is unused
    ]


def scored_annotations(recording: Recording) -> list[tuple[Annotation, int]]:
    """The annotations that are sleep stages, each with its code."""
    codes = stage_codes(texts_of(recording), recording.annotator)
    return [(a, code) for a, code in zip(recording.annotations, codes, strict=True) if code is not None]


def texts_of(recording: Recording) -> list[str]:
    """The texts of all annotations."""
    return [annotation.aux for annotation in recording.annotations]


def _spans_with_durations(recording: Recording, end: int) -> list[StageSpan]:
    marks = set(marks_within_stages(recording))
    lasting = [(annotation, code) for annotation, code in scored_annotations(recording) if annotation not in marks]
    return _as_they_last(lasting, _ends(recording), end)


def _as_they_last(scored: Sequence[tuple[Annotation, int]], ends: Collection[int], end: int) -> list[StageSpan]:
    """The spans of stages; one without a duration lasts until the next, or the next of `ends`, or `end`."""
    stops = sorted({*(annotation.sample for annotation, _ in scored), *ends, end})
    spans = []
    for annotation, code in scored:
        if annotation.duration:
            stop = annotation.sample + annotation.duration
        else:
            following = bisect.bisect_right(stops, annotation.sample)
            stop = stops[following] if following < len(stops) else end
        spans.append(StageSpan(start=annotation.sample, stop=stop, code=code))
    return spans


def marks_within_stages(recording: Recording) -> list[Annotation]:
    """The annotations of a stage that lie within a longer one of another annotation and are no epoch themselves."""
    scored = scored_annotations(recording)
    shortest = MARK_S * recording.annotation_rate_hz
    has_durations = any((annotation.duration or 0) >= shortest for annotation, _ in scored)
    unstated = 0 if has_durations else shortest
    short = [a for a, code in scored if code != UNSCORED and (a.duration or unstated) < shortest]
    lasting = [(a, code) for a, code in scored if code == UNSCORED or (a.duration or unstated) >= shortest]
    if not lasting or not short:
        return []
    spans = _as_they_last(lasting, (), num_samples(recording))
    reach = np.maximum.accumulate([span.stop for span in spans])
    before = np.searchsorted([span.start for span in spans], [a.sample for a in short], side="right")
    return [a for a, count in zip(short, before.tolist(), strict=True) if count and reach[count - 1] > a.sample]


def unknown_texts(recording: Recording) -> Mapping[str, int]:
    """Texts that are meant as stages, or stand where one is missing, but are unknown -> number of occurrences."""
    unknown = unknown_stages(texts_of(recording), recording.annotator)
    return {**unknown, **_in_place_of_stages(recording)} if recording.annotator == "edf+" else unknown


def _ends(recording: Recording) -> list[int]:
    """The samples of an EDF+ file at which a stage without a duration ends though the text there is no known stage.

    Marks have such texts too (`REM` of an eye movement), but not mostly on the grid of 10 s of the stages.
    """
    if recording.annotator != "edf+":
        return []
    shortest, first = MARK_S * recording.annotation_rate_hz, _first_stage(recording)
    places: dict[str, list[int]] = {
        text: [] for text in (*unknown_texts(recording), *bare_stages_left_out(texts_of(recording)))
    }
    for annotation in recording.annotations:
        if annotation.aux in places and (annotation.duration or shortest) >= shortest:
            places[annotation.aux].append(annotation.sample)
    on_grid = {text: [at for at in found if _is_on_grid(at - first, shortest)] for text, found in places.items()}
    return [at for text, found in on_grid.items() if 2 * len(found) > len(places[text]) for at in found]


def _in_place_of_stages(recording: Recording) -> Mapping[str, int]:
    """Texts of an EDF+ file that are neither stages nor events, but stand where one of a stage is missing -> number.

    All annotations of such a text begin on the grid of 30 s that all stages begin on, and at none of them is a stage:
    they last whole epochs, or are several without a duration, as the stages are.
    """
    scored, epoch = scored_annotations(recording), EPOCH_S * recording.annotation_rate_hz
    first, starts = _first_stage(recording), {annotation.sample for annotation, _ in scored}
    if not all(_is_on_grid(start - first, epoch) for start in starts):
        return {}
    stated = [span for (a, _), span in zip(scored, _as_they_last(scored, (), 0), strict=True) if a.duration]
    places: dict[str, list[Annotation]] = {}
    known = {*(annotation.aux for annotation, _ in scored), *bare_stages_left_out(texts_of(recording))}
    for annotation in recording.annotations:
        if annotation.aux not in known:
            places.setdefault(annotation.aux, []).append(annotation)
    return {
        text: len(found)
        for text, found in places.items()
        if all(
            annotation.sample not in starts
            and _is_on_grid(annotation.sample - first, epoch)
            and bool(annotation.duration) == bool(stated)
            and _is_on_grid(annotation.duration or 0, epoch)
            for annotation in found
        )
        and (stated or len(found) > 1)
        and not any(span.start <= a.sample < span.stop for a in found for span in stated)
        and not any(could_be_event(text, is_apnea) for is_apnea in (True, False))
    }


def _first_stage(recording: Recording) -> int:
    return min((annotation.sample for annotation, _ in scored_annotations(recording)), default=0)


def _is_on_grid(samples: int, step: float) -> bool:
    """Whether a distance is a multiple of a step, to a sample."""
    after = samples % step
    return min(after, step - after) <= 1


def st_span(annotation: Annotation, code: int, recording: Recording) -> StageSpan:
    """The epoch of 30 s that an annotation of an `.st` file scores."""
    length = EPOCH_S * recording.annotation_rate_hz
    # WFDB takes NOTE annotations at sample 0 for definitions, so writers put the epoch that begins there at sample 1.
    place = round(annotation.sample / length)
    start = annotation.sample
    if abs(start - place * length) <= 1:
        start = round(place * length)
    return StageSpan(start=start, stop=start + round(length), code=code)


def num_samples(recording: Recording) -> int:
    """The recording's length in samples of the annotation clock."""
    return round(recording.duration_s * recording.annotation_rate_hz)
