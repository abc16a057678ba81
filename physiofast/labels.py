"""Sleep stages, arousals and apneas from a recording's annotations.

Five sources: Challenge 2018 `.arousal` (stages are change points, events are `(name` ... `name)` pairs),
MIT-BIH polysomnographic `.st` (each annotation scores the 30 s after it), `.eannot` (a line for each 30 s), XML of the
National Sleep Research Resource and EDF+ hypnograms (each annotation has a duration), whose texts are `Sleep stage N2`
by the standard and `Stage - N2`, `N2` or `NREM 2` elsewhere. Which texts are stages stands in `physiofast/stages.py`,
for all five; which are arousals and respiratory events in the latter two in `physiofast/event_names.py`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from physiofast.event_names import could_be_event, edf_event, nsrr_event, unknown_events
from physiofast.io.recording import Annotation, Recording
from physiofast.official_targets import Labels as Labels
from physiofast.official_targets import read_official_arousal as read_official_arousal
from physiofast.official_targets import read_official_stages as read_official_stages
from physiofast.stages import EPOCH_S, has_stage, is_event, stage_codes, unknown_stages
from physiofast.stages import STAGES as STAGES
from physiofast.stages import UNSCORED as UNSCORED

MAX_TARGET_SAMPLES = 2**30
"""Labels per sample that are made for one recording: 62 days at 200 Hz."""

_ST_EVENTS = {
    **dict.fromkeys(("H", "HA"), "resp_hypopnea"),
    **dict.fromkeys(("OA", "X"), "resp_obstructiveapnea"),
    **dict.fromkeys(("CA", "CAA"), "resp_centralapnea"),
}
_WITH_AROUSALS = ("arousal", "nsrr")
_WITH_APNEAS = ("arousal", "st", "nsrr")
"""Annotators whose scorers looked for such events; in EDF+ they did where there are some and all are known."""
_EXPECTED = {
    "arousal": "'N2' or 'REM'",
    "st": "'2', '2 HA' or 'N2'",
    "edf+": "'Sleep stage N2', 'Stage - N2' or 'N2'",
    "nsrr": "'Stage 2 sleep|2'",
    "eannot": "'N2', 'R' or 'W'",
}
"""Stages in the spelling of each annotator that is read for some."""
_UNKNOWN = {
    "arousal": "annotations are neither events, such as '(resp_hypopnea', nor sleep stages that are known, and what "
    "follows each is unscored",
    "st": "annotations do not begin with a sleep stage that is known, and are left out",
    "eannot": "lines are no sleep stages that are known, and are unscored",
    "nsrr": "events look like sleep stages that are not known, and are left out",
    "edf+": "annotations look like sleep stages that are not known, and are left out (a stage without a duration goes "
    "on through them, unless they begin with 'Sleep stage')",
}
"""What is said of texts that are no stages where others are, by annotator."""
_OFF_GRID_S = 1.0
"""A stage that begins closer to the start or the end of a window shares it with no other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that lasts, on the annotation clock."""

    start: int
    stop: int
    """Sample at which it ends."""
    name: str
    """Such as `arousal_rera` or `resp_hypopnea`."""

    @property
    def is_apnea(self) -> bool:
        """Whether it is an apnea or a hypopnea."""
        return "apnea" in self.name or "hypopnea" in self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpan:
    """A stretch in one stage, on the annotation clock."""

    start: int
    stop: int
    code: int


def stage_spans(recording: Recording) -> list[StageSpan]:
    """Every scored stretch (and every stretch marked as not scorable), in time order."""
    end = _num_samples(recording)
    if recording.annotator == "arousal":
        return spans_of_changes([(a.sample, code) for a, code in _scored(recording)], end)
    if recording.annotator == "st":
        return [_st_span(annotation, code, recording) for annotation, code in _scored(recording)]
    if recording.annotator in ("edf+", "nsrr", "eannot"):
        return _spans_with_durations(recording, end)
    return []


def spans_of_changes(changes: Sequence[tuple[int, int]], end: int) -> list[StageSpan]:
    """The stretches between change points (sample, code of the stage that begins), the last one up to `end`."""
    stops = [*(sample for sample, _ in changes[1:]), end]
    return [
        StageSpan(start=start, stop=stop, code=code)
        for (start, code), stop in zip(changes, stops, strict=False)  # without any change `end` is left over
    ]


def _scored(recording: Recording) -> list[tuple[Annotation, int]]:
    """Annotations that are stages, each with its code."""
    codes = stage_codes(_texts(recording), recording.annotator)
    return [(a, code) for a, code in zip(recording.annotations, codes, strict=True) if code is not None]


def _texts(recording: Recording) -> list[str]:
    return [annotation.aux for annotation in recording.annotations]


def stage_epochs(recording: Recording, epoch_s: float = EPOCH_S) -> Labels:
    """Stage of each whole epoch: the one in force at its middle, for Challenge 2018 at its first sample.

    Epoch k begins at k * epoch_s from the recording's first sample. Challenge 2018 has one label at each sample, and
    that of epoch k is at 6000k. Elsewhere scorers' epochs may begin anywhere; where stages last an epoch or
    longer, most of an epoch is in the one at its middle. Nothing is shifted to the first annotation: an unscored
    lead-in stays unscored.

    Returns:
        int8 [E], 0 to 4 as in `STAGES`, -1 where nobody scored.
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
    """Events that last: respiratory events, arousals.

    Returns:
        Events by start, and one sentence for each `(name` without `name)` or the reverse.
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
    """What a reader of the labels should know, one sentence each.

    Annotations of which none is a stage, or some that look like one and are not known; stages of an annotator that is
    not read for any; stages of which none lies within the recording, or that do not change on the grid of windows;
    events without their pair.
    """
    spans = stage_spans(recording)
    if spans:
        found = [_unknown_among(recording), _no_stage_within(recording, spans), _off_grid(recording, spans, epoch_s)]
    else:
        found = [_no_stage_among(recording)]
    return [*filter(None, found), *events(recording)[1]]


def _no_stage_among(recording: Recording) -> str | None:
    texts, annotator = _texts(recording), recording.annotator
    if annotator not in _EXPECTED:
        return _stages_elsewhere(recording) if has_stage(texts, annotator) else None
    return (
        f"none of its {len(texts)} annotations is a sleep stage; found {_common((text, 1) for text in texts)}; "
        f"expected texts such as {_EXPECTED[annotator]}"
    )


def _stages_elsewhere(recording: Recording) -> str:
    """Of an annotator such as `atr`, whose annotations are beats or anything else."""
    scored = [(annotation.aux, 1) for annotation, _ in _scored(recording)]
    name, stem = recording.annotator, recording.path.stem
    return (
        f"{len(scored)} of the annotations in {stem}.{name} are sleep stages ({_common(scored)}), and none is read: "
        f"stages are those of .arousal and .st; copy the file to {stem}.arousal where a stage lasts until the next, or "
        f"to {stem}.st where each is that of the 30 s after it"
    )


def _unknown_among(recording: Recording) -> str | None:
    """Beside stages that are known."""
    unknown = unknown_stages(_texts(recording), recording.annotator)
    if not unknown:
        return None
    return f"{sum(unknown.values())} {_UNKNOWN[recording.annotator]}: {_common(unknown.items())}"


def _common(texts: Iterable[tuple[str, int]]) -> str:
    """The most frequent of some texts, each given with how often it is there."""
    counts: collections.Counter[str] = collections.Counter()
    for text, count in texts:
        counts[text[:40]] += count
    return ", ".join(f"{text!r} ({count})" for text, count in counts.most_common(5)) or "nothing"


def _no_stage_within(recording: Recording, spans: Sequence[StageSpan]) -> str | None:
    end, clock_hz = _num_samples(recording), recording.annotation_rate_hz
    if any(span.start < end and span.stop > 0 for span in spans):
        return None
    first, last = min(span.start for span in spans) / clock_hz, max(span.stop for span in spans) / clock_hz
    advice = "; look at the start dates and times of both headers" if recording.annotator == "edf+" else ""
    return (
        f"none of its {len(spans)} annotated sleep stages lies within the recording: they are {first:.0f} to "
        f"{last:.0f} s after its start, and it lasts {recording.duration_s:.0f} s{advice}"
    )


def _off_grid(recording: Recording, spans: Sequence[StageSpan], epoch_s: float) -> str | None:
    """Windows in which a stage begins: they hold two stages, or one and a part that nobody scored."""
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
    """The Challenge 2018 target, derived from events: `challenge_target` of the recording's annotations.

    A lead-in that nobody staged is 0 (`arousal_windows` drops it).

    Returns:
        int8 [n] at the annotation clock. All -1 when the source does not score arousals; an EDF+ file does where it
        has some and all are known.
    """
    if not _has_arousals(recording):
        return _target(recording, UNSCORED)
    samples, (found, _) = _target_samples(recording), events(recording)
    return challenge_target(samples, recording.annotation_rate_hz, stage_spans(recording), found)


def challenge_target(samples: int, rate_hz: float, stages: Iterable[StageSpan], marked: Collection[Event]) -> Labels:
    """The target that the Challenge 2018 scores.

    1 from 2 s before a RERA to 10 s after it and from 2 s before to 2 s after any other arousal that is no
    apnea or hypopnea; -1 from 10 s before to 10 s after wake, apneas and hypopneas; 0 elsewhere. -1 outranks
    1. As in the official arrays, starts are one sample early, wake starts two and ends one sample early.

    Args:
        samples: n.
        rate_hz: of the clock that spans and events are given on.
        stages: only wake matters.
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
    """1 in apneas and hypopneas, 0 elsewhere, -1 where nobody scored the stage.

    Returns:
        int8 [n] at the annotation clock. All -1 when the source does not score breathing; an EDF+ file does where
        it has some event of it and all are known.
    """
    target = _target(recording, UNSCORED)
    if not _has_apneas(recording):
        return target
    scored = _scored_samples(recording)
    target[scored] = 0
    for event in events(recording)[0]:
        if event.is_apnea:
            _fill(target, event.start, event.stop, 1)
    target[~scored] = UNSCORED
    return target


def window_labels(target: Labels, window: float) -> Labels:
    """One label for each whole window.

    Args:
        target: int8 [n] with 1, 0 and -1 (unscored).
        window: samples of a window; where that is no whole number, each begins at the nearest sample.

    Returns:
        int8 [n // window]: -1 if more than half of the window is unscored, else 1 if any scored sample is 1,
        else 0.

    Raises:
        ValueError: a window of less than one sample.
    """
    if not window >= 1:
        raise ValueError(f"a window needs at least 1 sample, got {window:g}")
    return _labels_of_windows(target, window, int(target.size // window))


def _labels_of_windows(target: Labels, window: float, count: int) -> Labels:
    if not count:
        return np.empty(0, np.int8)
    edges = np.round(np.arange(count + 1) * window).astype(np.int64)
    begins, inside = edges[:-1], target[: edges[-1]]
    unscored = np.add.reduceat(inside == UNSCORED, begins, dtype=np.int64)
    labels: Labels = np.maximum.reduceat(inside == 1, begins).astype(np.int8)
    labels[2 * unscored > np.diff(edges)] = UNSCORED
    return labels


def arousal_windows(recording: Recording, window_s: float = EPOCH_S) -> Labels:
    """Arousal label of each whole window: `arousal_target`, and unscored where nobody scored the stage.

    Returns:
        int8 [E] in {-1, 0, 1}.
    """
    if not _has_arousals(recording):
        return np.full(_whole_windows(recording, window_s), UNSCORED, np.int8)
    target = arousal_target(recording)
    target[~_scored_samples(recording)] = UNSCORED
    return _windows(recording, target, window_s)


def apnea_windows(recording: Recording, window_s: float = EPOCH_S) -> Labels:
    """Apnea label of each whole window, from `apnea_target`.

    Returns:
        int8 [E] in {-1, 0, 1}.
    """
    if not _has_apneas(recording):
        return np.full(_whole_windows(recording, window_s), UNSCORED, np.int8)
    return _windows(recording, apnea_target(recording), window_s)


def _has_arousals(recording: Recording) -> bool:
    """Whether somebody looked for arousals, and all that was found is known."""
    return recording.annotator in _WITH_AROUSALS or _are_known(recording, is_apnea=False)


def _has_apneas(recording: Recording) -> bool:
    """Whether somebody looked for apneas and hypopneas, and all that was found is known."""
    return recording.annotator in _WITH_APNEAS or _are_known(recording, is_apnea=True)


def _are_known(recording: Recording, is_apnea: bool) -> bool:
    """Of an EDF+ file: whether it has such events, and none that is left out, beside which 0 would be wrong."""
    if recording.annotator != "edf+":
        return False
    found = [a for a in recording.annotations if could_be_event(a.aux, is_apnea)]
    return bool(found) and all(a.duration and edf_event(a.aux) for a in found)


def _deciding_place(recording: Recording) -> tuple[float, str]:
    """Where in an epoch its stage is looked up: as a share of it, and in words."""
    return (0.0, "first sample") if recording.annotator == "arousal" else (0.5, "middle")


def _num_samples(recording: Recording) -> int:
    """Length of the recording on the annotation clock."""
    return round(recording.duration_s * recording.annotation_rate_hz)


def _target_samples(recording: Recording) -> int:
    """Length of a target; refused where a header states too much, for it may state anything."""
    size = _num_samples(recording)
    if size > MAX_TARGET_SAMPLES:
        raise ValueError(
            f"{recording.path}: labels per sample: expected at most {MAX_TARGET_SAMPLES} samples of the annotation "
            f"clock, found {size} ({recording.duration_s:g} s at {recording.annotation_rate_hz:g} Hz)"
        )
    return size


def _target(recording: Recording, value: int) -> Labels:
    """One label for each sample of the annotation clock."""
    return np.full(_target_samples(recording), value, np.int8)


def _whole_windows(recording: Recording, window_s: float) -> int:
    """A window that is short by less than half a sample of the annotation clock is whole."""
    return int((_num_samples(recording) + 0.5) // (window_s * recording.annotation_rate_hz))


def _windows(recording: Recording, target: Labels, window_s: float) -> Labels:
    window = window_s * recording.annotation_rate_hz
    if window < 1:
        raise ValueError(
            f"{recording.path}: a window of {window_s:g} s is less than one sample of the annotation clock, "
            f"{recording.annotation_rate_hz:g} Hz"
        )
    return _labels_of_windows(target, window, _whole_windows(recording, window_s))


def _fill(target: Labels, start: int, stop: int, value: int) -> None:
    target[max(start, 0) : max(stop, 0)] = value


def _scored_samples(recording: Recording) -> npt.NDArray[np.bool_]:
    scored = _target(recording, 0).view(np.bool_)
    for span in stage_spans(recording):
        scored[max(span.start, 0) : max(span.stop, 0)] = span.code != UNSCORED
    return scored


def _st_span(annotation: Annotation, code: int, recording: Recording) -> StageSpan:
    length = EPOCH_S * recording.annotation_rate_hz
    # Notes at sample 0 are taken for definitions, so writers put the epoch that begins there at sample 1.
    place = round(annotation.sample / length)
    start = annotation.sample
    if abs(start - place * length) <= 1:
        start = round(place * length)
    return StageSpan(start=start, stop=start + round(length), code=code)


def _st_events(recording: Recording) -> list[Event]:
    found: list[Event] = []
    for annotation, code in _scored(recording):
        span = _st_span(annotation, code, recording)
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
    unknown = unknown_events(_texts(recording)) if recording.annotator == "edf+" else {}
    if unknown:
        said.append(
            f"{sum(unknown.values())} annotations look like arousals or respiratory events that are not known, and are "
            f"left out{with_them}: {_common(unknown.items())}"
        )
    return found, said


def _spans_with_durations(recording: Recording, end: int) -> list[StageSpan]:
    scored = _scored(recording)
    spans = []
    for i, (annotation, code) in enumerate(scored):
        following = scored[i + 1][0].sample if i + 1 < len(scored) else end
        stop = annotation.sample + annotation.duration if annotation.duration else following
        spans.append(StageSpan(start=annotation.sample, stop=stop, code=code))
    return spans
