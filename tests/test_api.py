"""The public names that others rely on, and what importing them costs."""

import subprocess
import sys

import freezejax


def test_public_api_is_documented():
    for name in freezejax.__all__:
        # Dataclasses and named tuples without a docstring get one from Python; it has no example.
        assert ">>>" in (getattr(freezejax, name).__doc__ or ""), name


def test_the_artifact_needs_no_import_of_its_own_and_is_loaded_when_asked_for():
    code = (
        "import sys, freezejax; before = 'freezejax.artifact' in sys.modules; freezejax.artifact.save; "
        "print(before, hasattr(freezejax, 'artefact'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"


def test_importing_the_core_loads_neither_flax_nor_data_libraries():
    heavy = ("flax", "grain", "tensorflow_datasets", "orbax")
    code = f"import sys, freezejax; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_message_shows_what_no_eye_sees_and_is_not_too_long():
    """It may quote a damaged file: control characters would reach a terminal."""
    assert str(freezejax.UserError("name 'a\x1b[31m\x00'")) == r"name 'a\x1b[31m\x00'"
    assert len(str(freezejax.UserError("\x1b" * 5000))) < 1000
