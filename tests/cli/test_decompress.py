"""``mlopt decompress``."""

from tests.cli.commands import invoke, json_of


def test_decompress_gives_plain_weights_back(model, tmp_path):
    small, plain = tmp_path / "small.mlpackage", tmp_path / "plain.mlpackage"
    assert invoke("palettize", model, "-o", small, "--nbits", 2).exit_code == 0
    result = invoke("decompress", small, "-o", plain)
    assert result.exit_code == 0
    assert "times larger" in result.stdout
    rows = json_of(invoke("inspect", plain, "--json", "-"))["rows"]
    distinct = {row["name"]: row["distinct"] for row in rows if row["size"] > 2048}
    assert distinct == {"conv2_weight_to_fp16": 4, "hidden_weight_to_fp16": 4}
    assert invoke("decompress", small, "-o", plain).exit_code == 2


def test_decompress_tells_what_it_did(quantized, tmp_path):
    result = invoke("decompress", quantized, "-o", tmp_path / "dense.mlpackage")
    assert result.exit_code == 0, result.output
    assert "4 weights decompressed: 4 quantized." in result.stdout
    assert "times larger" in result.stdout
    again = invoke("decompress", tmp_path / "dense.mlpackage", "-o", tmp_path / "again.mlpackage")
    assert "No weight was compressed" in again.stdout
    assert "as large as before" in again.stdout
