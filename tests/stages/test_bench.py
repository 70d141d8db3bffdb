"""A tiny bench runs to its end, and what every contender made equals the oracle."""

import json
from pathlib import Path

import pytest

from deploy.bench import cases, contest
from deploy.bench.place import Place
from deploy.bench.run import run_bench

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
RIGHT = {"missing": 0, "unexpected": 0}


async def test_every_contender_ends_at_the_oracle(kafka: str, database_url: str, tmp_path: Path) -> None:
    async with Place(kafka, database_url) as place:
        ground = cases.Ground(place, tmp_path, 0.0)
        for make in (cases.pass_through, cases.processing, cases.whole_way):
            entries = make(ground)
            await ground.topics(entries, schema=make is cases.whole_way)
            found = await contest.contest(entries, place, 100, 1, print)
            assert len(found) == len(entries)
            for name, said in found.items():
                oracle = said["oracle"]
                assert oracle["compared"] > 0, name
                assert oracle | RIGHT == oracle, name
                assert oracle.get("stale", 0) == 0, name
                assert len(said["events_per_second"]) == 1, name


def test_the_command_writes_what_it_prints(
    kafka: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert run_bench(True, True, False, "f") == 0
    printed = json.loads(capsys.readouterr().out)
    (written,) = (tmp_path / ".headrace" / "bench").glob("*.json")
    assert json.loads(written.read_text()) == printed
    assert printed["cases"]["f"]["oracle"] | RIGHT | {"stale": 0} == printed["cases"]["f"]["oracle"]
    assert written.with_suffix(".md").exists()
    assert not list((tmp_path / ".headrace" / "bench").glob("run-*"))
