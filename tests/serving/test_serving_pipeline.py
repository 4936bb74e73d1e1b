"""What `gonio adapter serve` checks before it loads a model."""

import pytest

from gonio.adapters import load_adapter, write_bundle
from gonio.errors import AdapterError, MissingDependencyError, ModelError, SettingError
from gonio.pipelines import adapter_serve
from gonio.pipelines.adapter_serve import named_folders, serve_adapters


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Loading would be a mistake in every test here."""

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(adapter_serve, "load_model", load)


def test_members_of_a_bundle_keep_their_names(make_adapters, tmp_path):
    folders = make_adapters("neox")
    adapters = [load_adapter(folder) for folder in folders.values()]
    write_bundle(adapters[:2], ["a", "b"], tmp_path / "bundle")
    found = named_folders({"c": folders["three"]}, tmp_path / "bundle")
    assert list(found) == ["c", "a", "b"]
    assert load_adapter(found["a"]).updates.keys() == adapters[0].updates.keys()
    with pytest.raises(SettingError, match="has an adapter 'a' too"):
        named_folders({"a": folders["one"]}, tmp_path / "bundle")


def test_bad_input_fails_before_the_model_is_loaded(tiny_folder, tmp_path, make_adapters):
    with pytest.raises(AdapterError):
        serve_adapters(tiny_folder, {"one": tmp_path / "nothing"})
    with pytest.raises(ModelError, match="unknown model"):
        serve_adapters("no-such-model", {})
    with pytest.raises(SettingError, match="names the model"):
        serve_adapters(tiny_folder, {tiny_folder.name: make_adapters("llama")["one"]})


def test_a_missing_extra_fails_first(monkeypatch):
    monkeypatch.setattr("gonio.serving.server.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="fastapi"):
        serve_adapters("no-such-model", {})
