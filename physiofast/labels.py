"""Sleep stages, arousals and apneas from a recording's annotations.

Five sources: Challenge 2018 `.arousal` (stages are change points, events are `(name` ... `name)` pairs),
MIT-BIH polysomnographic `.st` (each annotation scores the 30 s after it), `.eannot` (a line for each 30 s), XML of the
National Sleep Research Resource and EDF+ hypnograms (each annotation has a duration), whose texts are `Sleep stage N2`
by the standard and `Stage - N2`, `N2` or `NREM 2` elsewhere. `physiofast/stages.py` recognises the stages of all five,
and `physiofast/stage_spans.py` says how long they last; `physiofast/event_names.py` recognises the arousals and
respiratory events of the latter two.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from physiofast.event_names import could_be_event, edf_event, nsrr_event, unknown_events
from physiofast.io.recording import Recording
from physiofast.official_targets import Labels as Labels
from physiofast.official_targets import read_official_arousal as read_official_arousal
from physiofast.official_targets import read_official_stages as read_official_stages
from physiofast.stage_spans import (
    MARK_S,
    StageSpan,
    marks_within_stages,
    num_samples,
    scored_annotations,
    st_span,
    texts_of,
    unknown_texts,
)
from physiofast.stage_spans import stage_spans as stage_spans
from physiofast.stages import EPOCH_S, bare_stages_left_out, has_stage, is_event
from physiofast.stages import STAGES as STAGES
from physiofast.stages import UNSCORED as UNSCORED

MAX_TARGET_SAMPLES = 2**30
"""Most labels per sample that are made for one recording: 62 days at 200 Hz."""

_ST_EVENTS = {
    **dict.fromkeys(("H", "HA"), "resp_hypopnea"),
    **dict.fromkeys(("OA", "X"), "resp_obstructiveapnea"),
    **dict.fromkeys(("CA", "CAA"), "resp_centralapnea"),
}
_WITH_AROUSALS = ("arousal", "nsrr")
_WITH_APNEAS = ("arousal", "st", "nsrr")
"""Annotators that always score apneas, as those above score arousals; an EDF+ file is taken to if it has some such
events and all are known."""
_EXPECTED = {
    "arousal": "'N2' or 'REM'",
    "st": "'2', '2 HA' or 'N2'",
    "edf+": "'Sleep stage N2', 'Stage - N2' or 'N2'",
    "nsrr": "'Stage 2 sleep|2'",
    "eannot": "'N2', 'R' or 'W'",
}
"""Examples of stages by annotator, for messages; stages of other annotators are not read."""
_UNKNOWN = {
    "arousal": "annotations are neither events, such as '(resp_hypopnea', nor sleep stages that are known, and what "
    "follows each is unscored",
    "st": "annotations do not begin with a sleep stage that is known, and are left out",
    "eannot": "lines are no sleep stages that are known, and are unscored",
    "nsrr": "events look like sleep stages that are not known, and are left out",
    "edf+": "annotations look like sleep stages that are not known, and are unscored (a stage without a duration ends "
    "there)",
}
"""Message by annotator about texts that are not known as stages, in a recording that has stages."""
_OFF_GRID_S = 1.0
"""A stage change this close to a window's start or end, in seconds, counts as on the grid of windows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """An arousal or a respiratory event; times are samples of the annotation clock."""

    start: int
    stop: int
    """End of the event (exclusive)."""
    name: str
    """A name of the Challenge 2018, such as `arousal_rera` or `resp_hypopnea`."""

    @property
    def is_apnea(self) -> bool:
        """Whether the event is an apnea or a hypopnea."""
        return "apnea" in self.name or "hypopnea" in self.name


def stage_epochs(recording: Recording, epoch_s: float = EPOCH_S) -> Labels:
    """The stage of each whole epoch: that at the epoch's middle, or for Challenge 2018 at its first sample.

    Epoch k begins at k * epoch_s after the recording's first sample. Challenge 2018 labels every sample, and the stage
    of epoch k stands at sample 6000k. In other sources the scorer's epochs may begin anywhere; stages last at least an
    epoch, so the stage at an epoch's middle covers most of it. Epochs are not shifted to the first annotation: an
    unscored lead-in stays unscored.

    Returns:
        int8 [E], 0 to 4 as in `STAGES`, -1 if unscored.
    """
    count = _whole_windows(recording, epoch_s)
    out = np.full(count, UNSCORED, np.int8)
    share, _ = _deciding_place(recording)
    deciding = np.round((np.arange(count) + share) * epoch_s * recording.annotation_rate_hz).astype(np.int64)
    for span in stage_spans(recording):
        low, high = np.searchsorted(deciding, (span.start, span.stop))
        out[low:high] = span.code
    return out


def events(recording: Recording) -> tuple[list[Event], list[str]]:
    """The arousals and respiratory events of a recording.

    Returns:
        The events sorted by start, and warnings: one sentence for each `(name` without `name)` or the reverse, and for
        events that are left out.
    """
    if recording.annotator == "st":
        return _st_events(recording), []
    if recording.annotator in ("edf+", "nsrr"):
        return _events_with_durations(recording)
    if recording.annotator != "arousal":
        return [], []
    found: list[Event] = []
    unpaired: list[str] = []
    begun: dict[str, list[int]] = {}
    for annotation in recording.annotations:
        text = annotation.aux
        if not is_event(text):
            continue
        if text.startswith("("):
            begun.setdefault(text[1:], []).append(annotation.sample)
        else:
            name = text[:-1]
            if begun.get(name):
                found.append(Event(start=begun[name].pop(0), stop=annotation.sample, name=name))
            else:
                unpaired.append(f"{name} ends at sample {annotation.sample} without having begun")
    for name, starts in begun.items():
        unpaired.extend(f"{name} begins at sample {start} and never ends" for start in starts)
    return sorted(found, key=lambda event: (event.start, event.stop)), unpaired


def notes(recording: Recording, epoch_s: float = EPOCH_S) -> list[str]:
    """Warnings about a recording's labels, one sentence each.

    They report annotations none of which is a stage, or some of which look like unknown stages; stages of an annotator
    whose stages are not read; stages none of which lies within the recording, or which do not change on the grid of
    windows; and events without their start or end.
    """
    spans = stage_spans(recording)
    if spans:
        of_texts = [_unknown_among(recording), _bare_among(recording), _marks_among(recording)]
        found = [*of_texts, _no_stage_within(recording, spans), _off_grid(recording, spans, epoch_s)]
    else:
        found = [_no_stage_among(recording)]
    return [*filter(None, found), *events(recording)[1]]


def _no_stage_among(recording: Recording) -> str | None:
    texts, annotator = texts_of(recording), recording.annotator
    if annotator not in _EXPECTED:
        return _stages_elsewhere(recording) if has_stage(texts, annotator) else None
    return (
        f"none of its {len(texts)} annotations is a sleep stage; found {_common((text, 1) for text in texts)}; "
        f"expected texts such as {_EXPECTED[annotator]}"
    )


def _stages_elsewhere(recording: Recording) -> str:
    """The warning about stages of an annotator such as `atr`, whose annotations may be anything and are not read."""
    scored = [(annotation.aux, 1) for annotation, _ in scored_annotations(recording)]
    name, stem = recording.annotator, recording.path.stem
    return (
        f"{len(scored)} of the annotations in {stem}.{name} are sleep stages ({_common(scored)}), and none is read: "
        f"stages are those of .arousal and .st; copy the file to {stem}.arousal where a stage lasts until the next, or "
        f"to {stem}.st where each is that of the 30 s after it"
    )


def _unknown_among(recording: Recording) -> str | None:
    """The warning about annotations that look like stages but are unknown; None if there are none."""
    unknown = unknown_texts(recording)
    if not unknown:
        return None
    return f"{sum(unknown.values())} {_UNKNOWN[recording.annotator]}: {_common(unknown.items())}"


def _bare_among(recording: Recording) -> str | None:
    """The warning about names of stages in an EDF+ file that are left out because others are titled."""
    texts = texts_of(recording)
    bare = bare_stages_left_out(texts) if recording.annotator == "edf+" else {}
    if not bare:
        return None
    titled = next(annotation.aux for annotation, code in scored_annotations(recording) if code != UNSCORED)
    return (
        f"{sum(bare.values())} annotations name a sleep stage without a word such as 'stage', and are left out, "
        f"because other annotations of the file have one ({titled!r}): {_common(bare.items())}"
    )


def _marks_among(recording: Recording) -> str | None:
    """The warning about annotations of a stage that are too short to be one."""
    marks = marks_within_stages(recording) if recording.annotator in ("edf+", "nsrr") else []
    if not marks:
        return None
    return (
        f"{len(marks)} annotations of a sleep stage last less than {MARK_S} s or state no duration, and lie within "
        f"another stage, so they mark something else, and are left out: {_common((mark.aux, 1) for mark in marks)}"
    )


def _common(texts: Iterable[tuple[str, int]]) -> str:
    """The five most frequent texts with their counts, for a message; `texts` are (text, count)."""
    counts: collections.Counter[str] = collections.Counter()
    for text, count in texts:
        counts[text[:40]] += count
    return ", ".join(f"{text!r} ({count})" for text, count in counts.most_common(5)) or "nothing"


def _no_stage_within(recording: Recording, spans: Sequence[StageSpan]) -> str | None:
    end, clock_hz = num_samples(recording), recording.annotation_rate_hz
    if any(span.start < end and span.stop > 0 for span in spans):
        return None
    first, last = min(span.start for span in spans) / clock_hz, max(span.stop for span in spans) / clock_hz
    advice = "; look at the start dates and times of both headers" if recording.annotator == "edf+" else ""
    return (
        f"none of its {len(spans)} annotated sleep stages lies within the recording: they are {first:.0f} to "
        f"{last:.0f} s after its start, and it lasts {recording.duration_s:.0f} s{advice}"
    )


def _off_grid(recording: Recording, spans: Sequence[StageSpan], epoch_s: float) -> str | None:
    """The warning about stages that begin within a window, which then holds two; None if all begin on the grid."""
    epoch, clock_hz = epoch_s * recording.annotation_rate_hz, recording.annotation_rate_hz
    count, code = _whole_windows(recording, epoch_s), UNSCORED
    windows: set[int] = set()
    offsets_s: set[float] = set()
    for span in spans:
        number, after = divmod(span.start, epoch)
        changed, code = span.code not in (UNSCORED, code), span.code
        if changed and 0 <= number < count and min(after, epoch - after) >= _OFF_GRID_S * clock_hz:
            windows.add(int(number))
            offsets_s.add(round(after / clock_hz, 1))
    if not windows:
        return None
    by = f"{offsets_s.pop():g} s" if len(offsets_s) == 1 else f"{min(offsets_s):g} to {max(offsets_s):g} s"
    return (
        f"stages do not change on the grid of {epoch_s:g} s windows: they begin {by} after a window's start, so "
        f"{len(windows)} of {count} windows hold two stages; each takes the one at its {_deciding_place(recording)[1]}"
    )


def arousal_target(recording: Recording) -> Labels:
    """The arousal target per sample.

    For annotations of the Challenge 2018 it is `challenge_target` of the recording's stages and events, which leaves
    out what surrounds apneas and hypopneas; an unscored lead-in is 0, as in the official arrays, and `arousal_windows`
    makes it unscored. For others it is 1 in arousals of every kind, whatever ended or caused them, -1 in wake and where
    the stage is unscored, and 0 elsewhere: scorers mark arousals that end an apnea like any other.

    Returns:
        int8 [n] at the annotation clock. All -1 if the source does not score arousals; an EDF+ file does if it has some
        and all are known.
    """
    target, (found, _) = _target(recording, UNSCORED), events(recording)
    if not _has_arousals(recording):
        return target
    if recording.annotator == "arousal":
        return challenge_target(target.size, recording.annotation_rate_hz, stage_spans(recording), found)
    return _scored_target(recording, found, False, (UNSCORED, STAGES.index("W")))


def challenge_target(samples: int, rate_hz: float, stages: Iterable[StageSpan], marked: Collection[Event]) -> Labels:
    """Compute the target that the Challenge 2018 scores.

    It is 1 from 2 s before a RERA to 10 s after it, and from 2 s before to 2 s after any other arousal that is no
    apnea or hypopnea; -1 from 10 s before to 10 s after wake, apneas and hypopneas; and 0 elsewhere. -1 takes
    precedence over 1. As in the official arrays, starts are one sample early; wake starts two samples and ends one
    sample early.

    Args:
        samples: length n of the target.
        rate_hz: rate of the annotation clock that spans and events are given on.
        stages: sleep stages, of which only wake matters.
        marked: arousals and respiratory events.

    Returns:
        int8 [n].

    Source: https://physionet.org/content/challenge-2018/1.0.0/, "Scoring".
    """
    target = np.zeros(samples, np.int8)
    short, long = round(2 * rate_hz), round(10 * rate_hz)
    for event in marked:
        if not event.is_apnea:
            after = long if event.name == "arousal_rera" else short
            _fill(target, event.start - short - 1, event.stop + after, 1)
    for event in marked:
        if event.is_apnea:
            _fill(target, event.start - long - 1, event.stop + long, UNSCORED)
    for span in stages:
        if span.code == STAGES.index("W"):
            _fill(target, span.start - long - 2, span.stop - 1 + long, UNSCORED)
    return target


def apnea_target(recording: Recording) -> Labels:
    """The apnea target per sample: 1 in apneas and hypopneas, 0 elsewhere, -1 where the stage is unscored.

    Returns:
        int8 [n] at the annotation clock. All -1 if the source does not score breathing; an EDF+ file does if it has
        some respiratory events and all are known.
    """
    if not _has_apneas(recording):
        return _target(recording, UNSCORED)
    return _scored_target(recording, events(recording)[0], True, (UNSCORED,))


def _scored_target(recording: Recording, found: Iterable[Event], is_apnea: bool, left_out: Collection[int]) -> Labels:
    """`_marked`, but -1 in stages that are left out."""
    target = _marked(recording, found, is_apnea)
    target[np.isin(_stage_samples(recording), tuple(left_out))] = UNSCORED
    return target


def _marked(recording: Recording, found: Iterable[Event], is_apnea: bool) -> Labels:
    """A target per sample that is 1 in apneas and hypopneas, or in arousals, and else 0."""
    target = _target(recording, 0)
    for event in found:
        if event.is_apnea == is_apnea:
            _fill(target, event.start, event.stop, 1)
    return target


def reduce_to_windows(target: Labels, window: float) -> Labels:
    """Reduce labels per sample to one label per whole window.

    Args:
        target: int8 [n] with 1, 0 and -1 (unscored).
        window: samples per window; if fractional, each window begins at the nearest sample.

    Returns:
        int8 [n // window]: -1 if more than half of the window is unscored, else 1 if any scored sample is 1,
        else 0.

    Raises:
        ValueError: a window of less than one sample.
    """
    if not window >= 1:
        raise ValueError(f"a window needs at least 1 sample, got {window:g}")
    return _reduce_to_windows(target, window, int(target.size // window))


def _reduce_to_windows(target: Labels, window: float, count: int) -> Labels:
    if not count:
        return np.empty(0, np.int8)
    edges = np.round(np.arange(count + 1) * window).astype(np.int64)
    begins, inside = edges[:-1], target[: edges[-1]]
    unscored = np.add.reduceat(inside == UNSCORED, begins, dtype=np.int64)
    labels: Labels = np.maximum.reduceat(inside == 1, begins).astype(np.int8)
    labels[2 * unscored > np.diff(edges)] = UNSCORED
    return labels


def arousal_windows(recording: Recording, window_s: float = EPOCH_S) -> Labels:
    """The arousal label of each whole window: `arousal_target`, reduced after samples of unscored stage are set to -1.

    A window without a sample of 1 is -1 rather than 0 where it has an arousal that the target leaves out, as that of
    the Challenge 2018 does near apneas and wake: somebody marked one there.

    Returns:
        int8 [E] in {-1, 0, 1}.
    """
    if not _has_arousals(recording):
        return np.full(_whole_windows(recording, window_s), UNSCORED, np.int8)
    target = arousal_target(recording)
    target[_stage_samples(recording) == UNSCORED] = UNSCORED
    labels = _windows(recording, target, window_s)
    marked = _windows(recording, _marked(recording, events(recording)[0], False), window_s)
    labels[(labels == 0) & (marked == 1)] = UNSCORED
    return labels


def apnea_windows(recording: Recording, window_s: float = EPOCH_S) -> Labels:
    """The apnea label of each whole window: `apnea_target`, reduced to windows.

    Returns:
        int8 [E] in {-1, 0, 1}.
    """
    if not _has_apneas(recording):
        return np.full(_whole_windows(recording, window_s), UNSCORED, np.int8)
    return _windows(recording, apnea_target(recording), window_s)


def _has_arousals(recording: Recording) -> bool:
    """Whether the recording's source scores arousals, all of which are known."""
    return recording.annotator in _WITH_AROUSALS or _are_known(recording, is_apnea=False)


def _has_apneas(recording: Recording) -> bool:
    """Whether the recording's source scores apneas and hypopneas, all of which are known."""
    return recording.annotator in _WITH_APNEAS or _are_known(recording, is_apnea=True)


def _are_known(recording: Recording, is_apnea: bool) -> bool:
    """Whether an EDF+ file has events of a kind and all of them can be read: if one is left out, a label of 0 is wrong.

    Other files have none.
    """
    if recording.annotator != "edf+":
        return False
    candidates = [a for a in recording.annotations if could_be_event(a.aux, is_apnea)]
    return bool(candidates) and all(a.duration and edf_event(a.aux) for a in candidates)


def _deciding_place(recording: Recording) -> tuple[float, str]:
    """The position in an epoch at which its stage is looked up, as a share of the epoch and in words."""
    return (0.0, "first sample") if recording.annotator == "arousal" else (0.5, "middle")


def _target_samples(recording: Recording) -> int:
    """The length of a target per sample.

    Raises:
        ValueError: more than `MAX_TARGET_SAMPLES`, as a damaged header may state.
    """
    size = num_samples(recording)
    if size > MAX_TARGET_SAMPLES:
        raise ValueError(
            f"{recording.path}: labels per sample: expected at most {MAX_TARGET_SAMPLES} samples of the annotation "
            f"clock, found {size} ({recording.duration_s:g} s at {recording.annotation_rate_hz:g} Hz)"
        )
    return size


def _target(recording: Recording, value: int) -> Labels:
    """A target with one value for every sample of the annotation clock."""
    return np.full(_target_samples(recording), value, np.int8)


def _whole_windows(recording: Recording, window_s: float) -> int:
    """The number of whole windows; one that is short by less than half a sample of the annotation clock is whole."""
    return int((num_samples(recording) + 0.5) // (window_s * recording.annotation_rate_hz))


def _windows(recording: Recording, target: Labels, window_s: float) -> Labels:
    window = window_s * recording.annotation_rate_hz
    if window < 1:
        raise ValueError(
            f"{recording.path}: a window of {window_s:g} s is less than one sample of the annotation clock, "
            f"{recording.annotation_rate_hz:g} Hz"
        )
    return _reduce_to_windows(target, window, _whole_windows(recording, window_s))


def _fill(target: Labels, start: int, stop: int, value: int) -> None:
    target[max(start, 0) : max(stop, 0)] = value


def _stage_samples(recording: Recording) -> Labels:
    """The stage of each sample of the annotation clock."""
    stages = _target(recording, UNSCORED)
    for span in stage_spans(recording):
        _fill(stages, span.start, span.stop, span.code)
    return stages


def _st_events(recording: Recording) -> list[Event]:
    found: list[Event] = []
    for annotation, code in scored_annotations(recording):
        span = st_span(annotation, code, recording)
        names = {_ST_EVENTS[word] for word in annotation.aux.split() if word in _ST_EVENTS}
        found.extend(Event(start=span.start, stop=span.stop, name=name) for name in sorted(names))
    return found


def _events_with_durations(recording: Recording) -> tuple[list[Event], list[str]]:
    name_of = nsrr_event if recording.annotator == "nsrr" else edf_event
    named = [(annotation, name) for annotation in recording.annotations if (name := name_of(annotation.aux))]
    found = [
        Event(start=annotation.sample, stop=annotation.sample + annotation.duration, name=name)
        for annotation, name in named
        if annotation.duration
    ]
    left = len(named) - len(found)
    with_them = ", and with them all of their kind" if recording.annotator == "edf+" else ""
    said = [f"{left} arousals and respiratory events state no duration, and are left out{with_them}"] if left else []
    unknown = unknown_events(texts_of(recording)) if recording.annotator == "edf+" else {}
    if unknown:
        said.append(
            f"{sum(unknown.values())} annotations look like arousals or respiratory events that are not known, and are "
            f"left out{with_them}: {_common(unknown.items())}"
        )
    return found, said
