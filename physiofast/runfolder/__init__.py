"""Files of a run folder: their schemas, and the modules that write and read them.

`provenance` records config, store and environment, and `identity` puts the first two into checkpoints; `initial` has
the weights that a run begins with; `metricslog` and `summary` have the results of its stages. `files` reads all for the
report, `pretrained` reads the model for users. `checkpoints/` belongs to `physiofast.checkpoint`.

metrics.jsonl
    One object per line. A logged step: `step`, `loss`, `lr`, `grad_norm`, `windows_per_s`,
    `padding_share`, `loss.EEG`, ... for modalities with hidden patches in it. An evaluation: `step` and
    `eval`: {`error.EEG`: hidden-patch error over predicting the mean, ...}. null is a number that was not
    finite. Of two lines for one step (after a resume) the later one counts; a last line that a kill cut off is
    left out.
summary.json
    `errors`: {modality: {`error`: float, `predictable_share`: {`from_channels`, `from_neighbours`,
    `total`: float} | null}}, `predictable_share_missing`: why no modality has one, `probes`:
    `ProbeReport.to_dict()`, `throughput`: {`windows_per_s`: float}, `seconds`: {stage: float}. Every
    key may be missing.
probe.json
    `ProbeReport.to_dict()`.
predictions.npz
    `record` str [n], `epoch` int [n], `stage_true` int8 [n], `stage_pred` int8 [n] (-1 unscored): windows of
    the test subjects, as `probing.hypnogram_arrays` orders them; `epoch_s` float; `step` int, the same as
    `ProbeReport.step`.
reconstruction.npz
    `record` str [W], `epoch` int [W], `patch_s` float; per channel `names`, `unit`, `modality` str [C],
    `rate_hz` float [C]; and for channel i: `true_i` float [W, T_i] in physical units (all NaN in a window
    where it is absent), `rebuilt_i` float [W, T_i] (NaN in visible patches), `hidden_i` bool [W, S].
    `step` int, number of steps that the model was trained for.
attention.json
    `AttentionShares.to_dict()`, and `step`, number of steps that the model was trained for.
prepare.json
    The store's manifest: `records`: [{`record`, `subject`, `age_years`, `sex`, `hours`, `drops`: {channel:
    reason}, `sources`: [{`file`, `bytes`, `sha256`}], `labels_sha256`}], `failed`: [{`record`, `reason`}].
config.json
    `recipe`: its name, null for a config that Python code passed, `store`: its folder, `config`: nested plain data.
init.json
    Only of a run that began with another run's weights: `run`: folder of that run, `step`: number of steps that its
    weights were trained for, `anew`: [parameters that began at random all the same], `subjects`: [subjects that these
    weights were trained on], `held_out`: [those of them that are held out here]; the last two are null where unknown.
environment.json
    Plain data on the environment in which the run began; `resumed`: {step: entries that differed when the run
    continued after that step}, if it ever did.
"""
