"""The Transformer's learning rates and smoothed losses, for who checks `numeric.npz`; BLEU of `bleu.json`.

Cases of BLEU whose text lives in files are checked where the files are: beside the golden file, or in the
folder that VITJAX_GOLDEN_DATA names (by default `../../data` of the golden file), which has `multi30k`. What
could not be checked is told in a warning.
"""

import gzip
import os
import pathlib
import re
import warnings

import numpy as np

from golden_checks import checks
from vitjax import losses
from vitjax.evaluators import corpus_scores
from vitjax.optim import schedules

RATE = 4e-7  # of the rate: ours is float32
LOSS = 1e-6  # of the loss: ours is float32; the float32 peer of the goldens reached 1e-6 on whole models
FORMS = {
    "uniform": "uniform",
    "offtarget": "off_target",
    "offtarget_minus_entropy": "off_target_minus_entropy",
}


def check_noam(arrays):
    """`noam_dD_wW_fF` at `noam_steps` = 1, 2, ..., which are 0, 1, ... updates done."""
    steps = arrays["noam_steps"].astype(np.int32)
    names = [name for name in arrays if re.fullmatch(r"noam_d\d+_w\d+_f[\d.]+", name)]
    assert names
    for name in names:
        width, warmup, factor = map(float, re.findall(r"[\d.]+", name))
        peak = factor * (width * warmup) ** -0.5
        schedule = schedules.create(
            total_steps=10**7, decay_type="inverse_sqrt", warmup_steps=int(warmup), lr=peak
        )
        rates = peak * np.float64(schedule(steps - 1))
        np.testing.assert_allclose(rates, arrays[name], rtol=RATE, err_msg=name)


def check_label_smoothing(arrays):
    """`lsN/...`: means over the targets that are not padding, 0."""
    cases = sorted({name.split("/")[0] for name in arrays if re.match(r"ls\d+/", name)})
    assert cases
    for case in cases:
        one = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{case}/")}
        real = one["targets"] != 0
        for name, form in FORMS.items():
            loss, nll = losses.token_xent(
                one["logits"], one["targets"], label_smoothing=float(one["eps"]), form=form
            )
            mean = lambda x, real=real: np.float64(np.asarray(x)[real]).mean()
            np.testing.assert_allclose(mean(loss), one[name], rtol=LOSS, err_msg=f"{case} {name}")
            np.testing.assert_allclose(mean(nll), one["nll"], rtol=LOSS, err_msg=f"{case} nll")


def has_scores(config):
    return {"sacrebleu_version", "cases", "compound_split"} <= set(config)


@checks(has_scores)
def check_bleu(config, arrays):
    """All cases whose text is at hand; the others are named in a warning."""
    del arrays
    folder = config["folder"]
    data = pathlib.Path(os.environ.get("VITJAX_GOLDEN_DATA") or folder.parent.parent / "data")
    for pair in config["compound_split"]:
        assert corpus_scores.compound_split(pair["input"]) == pair["output"]
    assert config["cases"]
    left_out = []
    for case in config["cases"]:
        hypotheses, references = texts(case, folder, data)
        if hypotheses is None:
            left_out.append(case["name"])
        elif case.get("kind") == "sentence":
            metric = corpus_scores.bleu_metric(**case["params"])
            for number, (line, wanted) in enumerate(zip(hypotheses, case["scores"], strict=True)):
                found = metric.sentence_score(line, [stream[number] for stream in references]).score
                assert abs(found - wanted) < 1e-9, case["name"]
        else:
            compare(case, hypotheses, references)
    assert len(left_out) < len(config["cases"]), "no case could be checked"
    if left_out:
        warnings.warn(f"not checked, for want of their text: {', '.join(left_out)}", stacklevel=2)


def compare(case, hypotheses, references):
    assert len(hypotheses) == case["num_segments"], case["name"]
    found = corpus_scores.bleu(hypotheses, references, **case["params"])
    assert abs(found.value - case["score"]) < 1e-9, f"{case['name']}: {found.value}"
    of_version = lambda signature: signature.rpartition("|version:")[0]
    assert of_version(found.signature) == of_version(case["signature"])
    assert found.formatted == case["formatted"]
    chrf = corpus_scores.chrf(hypotheses, references)
    assert abs(chrf.value - case["chrf"]) < 1e-9, f"{case['name']}: chrF {chrf.value}"
    assert of_version(chrf.signature) == of_version(case["chrf_signature"])


def texts(case, folder, data):
    """`(hypotheses, references)` of a case; `(None, None)` where their files are not at hand."""
    if "hyps" in case:
        return case["hyps"], case["refs"]
    name = case["name"]
    if found := re.match(r"(newstest2017)_(.+?)(_intl)?$", name):
        files = [folder / f"bleu_{found[1]}.{which}.de.gz" for which in (found[2], "ref")]
        if all(path.exists() for path in files):
            hypotheses, reference = map(read, files)
            return hypotheses, [reference]
    rules = {
        "copy_source": lambda source, reference: source,
        "drop_5th": lambda source, reference: drop_every_fifth(reference),
        "lowercased_hyp": lambda source, reference: reference.lower(),
    }
    if found := re.match(r"multi30k_test2016_(\w+)$", name):
        files = [data / "multi30k" / f"test_2016_flickr.{language}.gz" for language in ("en", "de")]
        if found[1] in rules and all(path.exists() for path in files):
            source, reference = map(read, files)
            return list(map(rules[found[1]], source, reference)), [reference]
    return None, None


def drop_every_fifth(line):
    return " ".join(word for number, word in enumerate(line.split(), 1) if number % 5)


def read(path: pathlib.Path):
    return [line.strip() for line in gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n")]
