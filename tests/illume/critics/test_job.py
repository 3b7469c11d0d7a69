"""The folder of a machine critic's job, and the command that runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from illume.critics.command import main, run_critic_job
from illume.critics.job import CriticJob, read_judged, write_critic_job
from illume.critics.rows import JudgedRationale
from illume.settings import CriticSettings
from illume.tuning.command import StopRequest
from illume.tuning.job import EXIT_FAILED, JobError, Stopped
from tests.illume.rounds import SETTINGS, make_examples


def write(folder: Path, base: str) -> list[JudgedRationale]:
    """A small job; the picture of its first prompt cannot be read."""
    examples = make_examples(folder / "images", count=4, split="train")
    Path(examples[0].images[0]).write_text("no picture")
    judged = [
        JudgedRationale(one, text, picked, -1.5 if picked else None)
        for one in examples
        for text, picked in (("there is a dog", True), ("the mud", False))
    ]
    halves = {one.id: number // 2 for number, one in enumerate(examples)}
    settings = CriticSettings(kind="verifier", tuning=replace(SETTINGS, epochs=1))
    write_critic_job(folder, CriticJob(base, halves, 3, settings=settings), judged)
    return judged


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    judged = write(tmp_path, "nowhere")
    job = CriticJob.from_json(json.loads((tmp_path / "job.json").read_text()))
    assert (job.seed, job.settings.kind, set(job.halves.values())) == (3, "verifier", {0, 1})
    found = read_judged(tmp_path, job)
    assert [(one.rationale, one.picked, one.mean_logprob) for one in found] == [
        (one.rationale, one.picked, one.mean_logprob) for one in judged
    ]
    assert [one.example.answer for one in found] == [one.example.answer for one in judged]
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(JobError, match="0 labels for 8 lines"):
        read_judged(tmp_path, job)


def test_it_runs_once_to_a_result_without_what_cannot_be_read(tmp_path: Path, base: Path) -> None:
    write(tmp_path, str(base))
    request = StopRequest()
    run_critic_job(tmp_path, request)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["picked"], result["turned_down"], len(result["left_out"])) == (3, 3, 1)
    assert set(result["all"]) >= {"critic", "permuted labels", "shuffled rationales", "length"}
    assert result["threshold"]["reason"] == "there are 6 verdicts on candidates; 80 are needed"
    assert json.loads((tmp_path / "progress.json").read_text())["fraction"] == 0.9
    for half in ("half-0", "half-1"):
        assert (tmp_path / "critic" / half / "adapter").is_dir()
    (tmp_path / "judged.jsonl").unlink()
    run_critic_job(tmp_path, request)  # it is done


def test_it_stops_when_it_is_asked_to(tmp_path: Path, base: Path) -> None:
    write(tmp_path, str(base))
    request = StopRequest()
    request.asked.set()
    with pytest.raises(Stopped):
        run_critic_job(tmp_path, request)
    assert not (tmp_path / "result.json").exists()


def test_a_job_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopRequest, "install", lambda *_, **__: None)
    write(tmp_path, "nowhere")
    (tmp_path / "labels.json").write_text("[]")
    assert main([str(tmp_path)]) == EXIT_FAILED
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["message"] == "labels.json has 0 labels for 8 lines of judged.jsonl"
    assert main(["--help"]) == 0
