"""What machine code is judged by, on entries made by hand; the real ones are compiled by CI."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import types

import pytest

from benchmarks import codegen
from benchmarks.codegen import Entry, worse

RECORDED = Entry(
    registers=128,
    stack_bytes=0,
    shared_bytes=32768,
    instructions=1000,
    tensor_core={"HGMMA": 8, "HMMA": 4},
    loads={"32": 10, "64": 2, "128": 16},
    stores={"32": 1, "128": 16},
    products_in_turn=False,
    sums_differ=False,
    made_from="0123",
)


def test_the_same_or_better_is_not_worse():
    assert worse(RECORDED, RECORDED) == []
    better = {"registers": 96, "instructions": 900, "tensor_core": {"HGMMA": 12, "HMMA": 4}}
    better |= {"loads": {"64": 6, "128": 16}, "stores": {"128": 20}}
    assert worse(dataclasses.replace(RECORDED, **better), RECORDED) == []
    without = dataclasses.replace(RECORDED, tensor_core={}, loads={}, stores={})
    assert worse(RECORDED, without) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"registers": 129}, "registers 129, was 128"),
        ({"stack_bytes": 8}, "stack_bytes 8, was 0"),
        ({"shared_bytes": 32776}, "shared_bytes 32776, was 32768"),
        ({"instructions": 1001}, "instructions 1001, was 1000"),
        ({"tensor_core": {"HGMMA": 7, "HMMA": 4}}, "HGMMA instructions 7, were 8"),
        ({"tensor_core": {"HGMMA": 8, "HMMA": 3}}, "HMMA instructions 3, were 4"),
        ({"tensor_core": {"HMMA": 64}}, "HGMMA instructions 0, were 8"),  # more of one kind do not make up for another
        ({"loads": {"32": 10, "64": 34}}, "widest of loads 64 bits, was 128"),
        ({"loads": {"16": 1, "32": 10, "64": 2, "128": 16}}, "narrowest of loads 16 bits, was 32"),
        ({"stores": {"32": 1, "64": 32}}, "widest of stores 64 bits, was 128"),
        ({"stores": {"8": 1, "32": 1, "128": 16}}, "narrowest of stores 8 bits, was 32"),
    ],
)
def test_each_kind_of_worsening_is_noticed(change, said):
    assert worse(dataclasses.replace(RECORDED, **change), RECORDED) == [said]


def test_kinds_of_tensor_core_instructions_are_counted_apart():
    names = ["HGMMA.64x128x16.F32.BF16", "HMMA.16816.F32", "HMMA.16816.F32.BF16", "FFMA", "LDG.E.128", "DMMA.884"]
    assert codegen._kinds(names) == {"HGMMA": 1, "HMMA": 2, "DMMA": 1}
    assert codegen._kinds(["HGMMA.64x16x16.F32.BF16", "HGMMA.64x32x16.F32.BF16"]) == {"HGMMA": 2, codegen._NARROW: 1}
    assert codegen._widths([*names, "LDG.E", "LDGSTS.E.BYPASS.128", "LDG.E.U16"], ("LDG", "LDGSTS")) == {
        "16": 1,
        "32": 1,
        "128": 2,
    }


def test_an_instruction_that_was_made_wrongly_is_a_defect():
    specimen = types.SimpleNamespace(needs_tensor_cores=True, narrowest_load_bits=0)
    assert codegen.defects(specimen, RECORDED) == []
    narrow = dataclasses.replace(RECORDED, tensor_core={"HGMMA": 8, codegen._NARROW: 2})
    assert codegen.defects(specimen, narrow) == ["2 HGMMA of fewer than 32 columns, which Triton 3.6 has made wrongly"]
    in_turn = dataclasses.replace(RECORDED, products_in_turn=True)
    assert codegen.defects(specimen, in_turn) == ["each product of a warp group waits for the one before it"]
    differ = dataclasses.replace(RECORDED, sums_differ=True)
    assert codegen.defects(specimen, differ) == [
        "a product is fused into a sum of several threads, which get different bits"
    ]


def test_products_that_are_fused_into_an_exchange_are_found():
    exchange = "shfl.sync.bfly.b32 \t%r381, %r365, 16, 31, -1;\n"
    assert codegen.sums_differ(f"{exchange}fma.rn.f32 \t%r382, %r333, %r333, %r381;")
    assert not codegen.sums_differ(f"{exchange}add.f32 \t%r382, %r365, %r381;")
    assert not codegen.sums_differ(f"{exchange}fma.rn.f32 \t%r382, %r333, %r381, %r365;")


def test_the_committed_table_has_every_column_of_every_entry():
    columns = {field.name for field in dataclasses.fields(Entry)}
    for version, entries in json.loads(codegen.TABLE.read_text()).items():
        for name, entry in entries.items():
            assert set(entry) == columns, f"Triton {version}, {name}"
            assert isinstance(entry["tensor_core"], dict), f"Triton {version}, {name}: renew it with --write"


def test_the_documents_say_how_many_shapes_there_are():
    said = re.findall(r"in the (\d+) shapes", (codegen.TABLE.parents[2] / "docs" / "performance.md").read_text())
    assert {len(entries) for entries in json.loads(codegen.TABLE.read_text()).values()} == {int(n) for n in said}


def test_too_much_shared_memory_for_a_smaller_device_is_noticed(monkeypatch):
    compiled = types.SimpleNamespace(metadata=types.SimpleNamespace(shared=150_000))
    monkeypatch.setattr(codegen, "compile_for", lambda specimen, capability: compiled)
    monkeypatch.setattr(codegen, "code", lambda compiled, made_from: None)
    monkeypatch.setattr(codegen, "digest", lambda specimen: "")
    monkeypatch.setattr(codegen, "_specimens", lambda: [types.SimpleNamespace(is_everywhere=True)])
    assert codegen.examine(0)[1] == ["150000 bytes of shared memory for 8.0; 101376 are allowed"]


def test_what_does_not_compile_is_one_line_of_the_report(monkeypatch, capsys):
    def compile_for(specimen, capability):
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(codegen, "compile_for", compile_for)
    monkeypatch.setattr(codegen, "_specimens", lambda: [types.SimpleNamespace(is_everywhere=True)])
    found, problems = codegen.examine(0)
    assert found is None and problems[0] == "does not compile for 9.0: RuntimeError: PassManager::run failed"
    assert codegen._report([("first", found, problems), ("second", RECORDED, [])], {})
    printed = capsys.readouterr().out
    assert "first\n  FAILS  does not compile for 9.0" in printed and "second  128 registers" in printed


DIGESTS = """
import dataclasses, json
import torch
from benchmarks import codegen

specimens = list(codegen.specimens())
first = next(s for s in specimens if s.started.constants and isinstance(s.started.args[0], torch.Tensor))
def other(**changes):
    return dataclasses.replace(first, started=dataclasses.replace(first.started, **changes))
started, launch = first.started, first.started.launch
name, value = next((name, value) for name, value in started.constants.items() if type(value) is int)
kernel = next(s.started.kernel for s in specimens if s.started.kernel is not started.kernel)
differ = [
    first,
    other(args=(started.args[0].to(torch.float64), *started.args[1:])),
    other(constants=started.constants | {name: 2 * value + 1}),
    other(launch=dataclasses.replace(launch, num_warps=2 * launch.num_warps)),
    other(launch=dataclasses.replace(launch, max_registers=40)),
    dataclasses.replace(first, is_everywhere=False),
]
same = [first, dataclasses.replace(first, name="another"), other(grid=(7,))]
found = {s.name: codegen.digest(s) for s in specimens}
print(json.dumps([[codegen.digest(s) for s in differ], [codegen.digest(s) for s in same], found]))
"""


def test_a_digest_is_of_all_that_machine_code_follows_from():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", DIGESTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=codegen.TABLE.parents[2], env=environment)
    assert done.returncode == 0, done.stderr
    differ, same, found = json.loads(done.stdout)
    assert len(set(differ)) == len(differ)
    assert len(set(same)) == 1
    assert len(set(found.values())) == len(found)


def test_only_what_has_changed_is_compiled(monkeypatch, tmp_path, capsys):
    def specimen(name):
        return types.SimpleNamespace(name=name, needs_tensor_cores=True, narrowest_load_bits=0)

    compiled = []

    def examine(number):
        compiled.append(made[number].name)
        return made[number].name, []

    pool = types.SimpleNamespace(map=map)
    table, made = tmp_path / "codegen.json", [specimen("old"), specimen("changed"), specimen("worse")]
    now = {"changed": 900, "worse": 1001}
    entries = [dataclasses.replace(RECORDED, made_from=f"before {one.name}") for one in made]
    digests = {"old": "before old", "changed": "changed", "worse": "worse"}
    version = codegen.triton.__version__
    table.write_text(
        json.dumps({version: {one.name: dataclasses.asdict(e) for one, e in zip(made, entries, strict=True)}})
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(codegen, "TABLE", table)
    monkeypatch.setattr(codegen, "_specimens", lambda: made)
    monkeypatch.setattr(codegen, "digest", lambda one: digests[one.name])
    monkeypatch.setattr(codegen, "examine", examine)
    monkeypatch.setattr(
        codegen,
        "inspect",
        lambda codes: [dataclasses.replace(RECORDED, instructions=now[c], made_from=digests[c]) for c in codes],
    )
    monkeypatch.setattr(
        codegen.concurrent.futures, "ProcessPoolExecutor", lambda *_, **__: contextlib.nullcontext(pool)
    )
    assert codegen.main(["--check", "--changed"]) == 1
    assert compiled == ["changed", "worse"]
    printed = capsys.readouterr().out
    assert "2 of 3 are compiled" in printed and printed.count("FAILS") == 1 and "1001, was 1000" in printed

    now["worse"] = 1000
    assert codegen.main(["--check", "--changed", "--write"]) == 0
    compiled.clear()
    assert codegen.main(["--check", "--changed"]) == 0
    assert compiled == []
    monkeypatch.setattr(codegen, "_specimens", lambda: made[:2])
    assert codegen.main(["--check", "--changed"]) == 1  # the table lists what is no more
