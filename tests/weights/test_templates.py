"""Names with numbers in them."""

from vitjax.weights.templates import Templates, fill, match


def test_marks_are_numbers_of_either_counting():
    assert match("layer{i+1}.{j}.conv1", "layer2.10.conv1") == {"i": 1, "j": 10}
    assert match("layer{i+1}.{j}.conv1", "layer0.0.conv1") is None  # theirs count from one
    assert match("layer{i+1}.{j}.conv1", "layer2.1.conv2") is None
    assert fill("block{i+1}/unit{j}", {"i": 1, "j": 10}) == "block2/unit10"


def test_the_template_that_gives_a_name_is_found():
    templates = Templates(["blocks.{i}.conv1", "blocks.0.{j}.conv1", "blocks.{i}.{j}.conv1", "norm"])
    assert templates.find("blocks.3.conv1") == ("blocks.{i}.conv1", {"i": 3})
    assert templates.find("blocks.0.4.conv1") == ("blocks.0.{j}.conv1", {"j": 4})  # the first that fits
    assert templates.find("blocks.1.4.conv1") == ("blocks.{i}.{j}.conv1", {"i": 1, "j": 4})
    assert templates.find("blocks.1.4.conv2") is None and templates.find("norm") == ("norm", {})
