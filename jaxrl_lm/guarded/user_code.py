"""Python files of users: reward functions and environments that a command names as `file.py:NAME`."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


class _FromSource(SourceFileLoader):
    """Compiles the source at each import: bytecode of an edit within the same second would be stale."""

    def get_code(self, fullname: str) -> CodeType:
        """The file's code as it is now."""
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(path: Path) -> ModuleType:
    """Import a Python file, whatever its name, as a module of its own.

    Raises:
        Exception: whatever the file raises.
    """
    path = path.resolve()
    name = f"user_file {path}"
    found = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert found is not None, path
    assert found.loader is not None, path
    module = importlib.util.module_from_spec(found)
    # Dataclasses look their module up while it is executed.
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
