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


def test_marks_may_count_two_things_in_turn():
    assert match("layers.{2i}.layers.{j}.norm", "layers.4.layers.3.norm") == {"i": 2, "j": 3}
    assert match("layers.{2i}.norm", "layers.3.norm") is None  # the odd ones are others
    assert (
        match("layers.{2i+1}.fc", "layers.3.fc") == {"i": 1}
        and match("layers.{2i+1}.fc", "layers.2.fc") is None
    )
    assert fill("layers.{2i+1}.fc", {"i": 1}) == "layers.3.fc" and fill("{2i}", {"i": 2}) == "4"
    assert Templates(["a.{2i}", "a.{2i+1}"]).find("a.7") == ("a.{2i+1}", {"i": 3})
