"""The package of the evaluators' tests: adapters "mood" (classification) and "story" (generation) on the tiny Llama."""

from tests.evaluators.conftest import adapter_folders, package_folder

__all__ = ["adapter_folders", "package_folder"]
