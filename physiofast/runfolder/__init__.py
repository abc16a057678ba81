"""A run folder: its files, who writes each and who reads them again. `checkpoints/` is `physiofast.checkpoint`'s.

`provenance` has what the run is of, `identity` what its checkpoints say of that, `initial` the weights that it begins
with, `metricslog` and `summary` what its stages found; `files` reads for the report, `pretrained` for others.

metrics.jsonl
    One object per line. A logged step: `step`, `loss`, `lr`, `grad_norm`, `windows_per_s`,
    `padding_share`, `loss.EEG`, ... for modalities with hidden patches in it. An evaluation: `step` and
    `eval`: {`error.EEG`: hidden-patch error over predicting the mean, ...}. null is a number that was not
    finite. A step that is there twice (after a resume) counts as written last; a last line that was cut off
    by a kill is left out.
summary.json
    `errors`: {modality: {`error`: float, `predictable_share`: {`from_channels`, `from_neighbours`,
    `total`: float} | null}}, `predictable_share_missing`: why no modality has one, `probes`:
    `ProbeReport.to_dict()`, `throughput`: {`windows_per_s`: float}, `seconds`: {stage: float}. Every
    key may be missing.
probe.json
    `ProbeReport.to_dict()`.
predictions.npz
    `record` str [n], `epoch` int [n], `stage_true` int8 [n], `stage_pred` int8 [n] (-1 unscored): windows of
    the test subjects, as `probing.hypnogram_arrays` orders them; `epoch_s` float; `step` int, as
    `ProbeReport.step`.
reconstruction.npz
    `record` str [W], `epoch` int [W], `patch_s` float; per channel `names`, `unit`, `modality` str [C],
    `rate_hz` float [C]; and for channel i: `true_i` float [W, T_i] in physical units (all NaN in a window
    where it is absent), `rebuilt_i` float [W, T_i] (NaN in visible patches), `hidden_i` bool [W, S].
    `step` int, of the model.
attention.json
    `AttentionShares.to_dict()`, and `step`, of the model.
prepare.json
    The store's manifest: `records`: [{`record`, `subject`, `age_years`, `sex`, `hours`, `drops`: {channel:
    reason}, `sources`: [{`file`, `bytes`, `sha256`}], `labels_sha256`}], `failed`: [{`record`, `reason`}].
config.json
    `recipe`: its name, null for what Python code passed, `store`: its folder, `config`: nested plain data.
init.json
    Where the run began with another one's weights: `run`: that one's folder, `step`: after which, `anew`: [parameters
    that began at random all the same], `subjects`: [those that these weights were trained on], `held_out`: [which of
    them are held out here]; the last two null where nobody knows.
environment.json
    Plain data of the machine that the run began on; `resumed`: {step: what was another there when the run went on
    after that step}, where it ever did.
"""
