"""What the README and the pages of docs/ tell users to write, and where they point."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from physiofast.embedding import pool_modalities
from physiofast.progress import Progress
from physiofast.runs import start_run, train_run
from physiofast.synthetic import CohortConfig, write_cohort
from tests.cohort import write_store
from tests.test_runs import CONFIG

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
]


def blocks_under(heading, page="README.md"):
    """The Python blocks of a section, up to the next heading of any depth."""
    section = re.split(rf"\n##+ {re.escape(heading)}\n", (ROOT / page).read_text())[1]
    section = re.split(r"\n##+ ", section)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_example_for_scripts_of_ones_own_is_the_plain_computation():
    """Without the attention, the loss and the gradients of a masked autoencoder in a few lines of PyTorch."""
    torch.manual_seed(0)
    (code,) = blocks_under("In a training script you already have")
    assert "encoded = tokens + attention(tokens, plan.visible)" in code
    names = {}
    exec(code, names)  # as it stands
    torch.manual_seed(0)
    exec(code.replace(" + attention(tokens, plan.visible)", ""), names)
    weight, position, mask, head = leaves = [
        names[name].detach().requires_grad_() for name in ("weight", "position", "mask", "head")
    ]
    patches = names["x"].reshape(8, 150, 100)
    matrices = weight.view(3, 100, 64)[names["modality"]]  # of each token
    tokens = torch.einsum("bnp,npd->bnd", patches, matrices) + position
    full = torch.where(names["visible"][..., None], tokens + position, position + mask)
    error = (full @ head - patches).square().mean(-1)[~names["visible"]].mean()
    torch.testing.assert_close(names["loss"], error)
    for name, want in zip(("weight", "position", "mask", "head"), torch.autograd.grad(error, leaves), strict=True):
        torch.testing.assert_close(names[name].grad, want, rtol=1e-4, atol=1e-4)


def test_the_example_of_a_pretrained_encoder(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store")
    run = start_run(tmp_path / "runs" / "demo", store, CONFIG, "base")
    assert train_run(run, Progress()).finished
    shutil.rmtree(store.path)
    others = write_store(tmp_path / "store", seed=1)
    monkeypatch.chdir(tmp_path)
    names = {}
    (encoder,), (tuning,) = blocks_under("The pretrained encoder"), blocks_under("Training it further")
    loader, surgery = (
        block
        for heading in ("A loader with workers", "An encoder for another montage")
        for block in blocks_under(heading, "docs/python.md")
    )
    exec(encoder, names)
    width = CONFIG.model.width
    assert names["vectors"].shape == (sum(record.num_windows for record in others.records), 4 * width)
    visible = names["plan"].visible
    assert names["tokens"].shape == (len(visible.ids), width)
    assert (visible.ids >= 0).sum() == names["batch"].valid.sum()
    pooled = pool_modalities(names["tokens"].detach(), visible).flatten(1)
    np.testing.assert_allclose(pooled, names["vectors"][:16], atol=2e-5)
    read = []
    names["note"] = lambda batch: read.extend(batch.window_id.tolist())
    exec(loader.rstrip() + "\n    note(batch)\n", names)
    assert sorted(read) == sorted(names["index"].window_id.tolist())
    shutil.rmtree("store")
    store = write_store(tmp_path / "store")  # the run's own
    before = {name: parameter.clone() for name, parameter in names["model"].named_parameters()}
    exec(tuning, names)
    assert names["loss"].isfinite()
    moved = dict(names["model"].named_parameters())
    assert all(parameter.isfinite().all() for parameter in moved.values())
    assert not torch.equal(moved["tokeniser.EEG.weight"], before["tokeniser.EEG.weight"])
    subjects = [record.subject for record in store.records]
    cohort = names["cohort"]
    assert {subjects[r] for r in cohort.test.record} == set(cohort.test_subjects)
    of_train = [store.records[r].stage[e] for r, e in zip(cohort.train.record, cohort.train.epoch, strict=True)]
    assert names["stage"].tolist() == of_train
    exec(surgery.replace('"ECG"', '"RESP"'), names)  # which that montage has
    trained, smaller = names["trained"].state_dict(), names["smaller"].state_dict()
    assert names["missing"] == []
    assert set(trained) - set(smaller) == {name for name in trained if "RESP" in name or "AIRFLOW" in name}
    bias = next(name for name in smaller if name.endswith("pair_bias"))
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(smaller[bias], trained[bias][:, kept[:, None], kept], rtol=0, atol=0)


def test_the_example_of_the_signal_engine(tmp_path, monkeypatch):
    write_cohort(tmp_path / "recordings", CohortConfig(subjects=1, hours=0.1, absent_share=0.0))
    (record,) = (tmp_path / "recordings" / "RECORDS").read_text().split()
    monkeypatch.chdir(tmp_path)
    names = {}
    (code,) = blocks_under("An example", "docs/engine.md")
    exec(code.replace("tr90-0001", record.rstrip("/")), names)
    samples = names["night"].shape[1]
    assert names["night"].dtype == np.int16
    assert names["night"].shape == names["clean"].shape == (13, samples)
    assert names["windows"].shape == (samples // 6000, 13, 3840)


def test_the_example_of_a_model(tmp_path, monkeypatch):
    write_store(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    names = {}
    (code,) = blocks_under("A training step of your own", "docs/python.md")
    exec(code, names)
    gradients = [parameter.grad for parameter in names["model"].parameters()]
    assert torch.isfinite(names["loss"])
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def anchors(text):
    """Those that a page's headings have, as GitHub and PyPI make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)  # without code
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target
