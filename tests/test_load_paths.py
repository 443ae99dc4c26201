"""Every call in the packages that could load code or objects from data is on a list, with its
reason.

A new reader has to be added here, and to `tests/test_hostile.py`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("streamadapt", "connectors")

# By its last names: the end of a call, however it was imported.
SUSPICIOUS = {
    "eval", "exec", "compile", "__import__", "import_module", "literal_eval", "load", "loads",
    "load_file", "safe_open", "Unpickler", "_Unpickler", "unsafe_load", "load_library",
    "from_file", "fromfile", "memmap", "open_memmap", "loadtxt", "genfromtxt", "fromregex",
    "extract", "extractall", "unpack_archive", "ZipFile", "GzipFile", "BZ2File", "LZMAFile",
    "TarFile", "decompress", "decompressobj", "run_path", "run_module", "CDLL", "CFUNCTYPE",
    "Popen", "system", "popen", "spawn", "sympify", "read_pickle", "read_array",
    "package_importer", "PackageImporter", "deserialize", "treespec_loads", "entry_points",
    "InferenceSession", "register_custom_ops_library",
}  # fmt: skip
# Modules that only the named modules may import.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "dbm",
    "yaml", "ruamel", "zipfile", "tarfile", "gzip", "bz2", "lzma", "shutil", "ctypes", "cffi",
    "code", "codeop", "runpy", "imp", "importlib", "subprocess", "xml", "plistlib", "sqlite3",
    "copyreg", "multiprocessing", "torch.package", "torch.export", "torch.jit", "torch.hub",
    "torch.serialization", "torch.utils.cpp_extension", "h5py", "pandas",
}  # fmt: skip

CALLS: dict[tuple[str, str], str] = {
    (
        "streamadapt/app/demo/broker.py",
        "ctypes.CDLL",
    ): "the process's own C library, to end the broker with its parent",
    (
        "streamadapt/app/demo/broker.py",
        "subprocess.Popen",
    ): "the embedded broker, from an installed package",
    (
        "streamadapt/app/demo/cgm.py",
        "gzip.decompress",
    ): "the demo's data, which an installed package ships",
    ("streamadapt/app/demo/view.py", "subprocess.Popen"): "a type",
    (
        "streamadapt/drift/compiled.py",
        "self.form.load",
    ): "a detector's arrays from a checkpoint's tree of arrays and numbers",
    ("streamadapt/models/contract.py", "copy.deepcopy().eval"): "a module's mode",
    ("streamadapt/learners/tta/copies.py", "copy.deepcopy().to().eval"): "a module's mode",
    ("streamadapt/app/warming.py", "point.load"): "an entry point: installed code, to compile it",
    (
        "streamadapt/state/folder.py",
        "point.load",
    ): "installed code, of which the config gives the name",
    ("streamadapt/state/river_pickle.py", "pickle._Unpickler"): "the guarded unpickler",
    ("streamadapt/app/demo/engine.py", "json.loads"): "JSON, from the demo's own engine",
    ("streamadapt/app/demo/engine.py", "subprocess.Popen"): "the demo's own engine",
    ("streamadapt/app/demo/judge.py", "json.loads"): "JSON, from the demo's own engine",
    (
        "streamadapt/wiring.py",
        "point.load",
    ): "an entry point: installed code, of which the config gives the name",
    (
        "streamadapt/build.py",
        "kinds()[].load",
    ): "an entry point: installed code, of which the config gives the name",
    (
        "streamadapt/build.py",
        "point.load",
    ): "an entry point: installed code, of which the config gives the name",
    (
        "streamadapt/app/config_keys.py",
        "kinds()[].load",
    ): "an entry point: installed code, to describe its keys",
    (
        "streamadapt/models/builtin.py",
        "importlib.import_module",
    ): "base.factory: the operator's own code, named in his config",
    ("streamadapt/state/store.py", "json.loads"): "JSON, its checksum compared",
    ("streamadapt/state/store.py", "safetensors.torch.load"): "safetensors, its checksum compared",
    ("streamadapt/state/store.py", "self.load"): "this store's own, which is the two above",
    (
        "streamadapt/learners/river.py",
        "importlib.import_module",
    ): "learners.model: a path below river, of the config",
    ("streamadapt/state/manifest.py", "json.loads"): "JSON, its checksum compared",
    (
        "streamadapt/models/onnx.py",
        "runtime.InferenceSession",
    ): "ONNX from memory; no other file is opened",
    (
        "streamadapt/config/registry.py",
        "entry_points",
    ): "installed code, of which the config gives the name",
    (
        "streamadapt/config/registry.py",
        "point.load",
    ): "installed code, of which the config gives the name",
    ("streamadapt/state/pack.py", "json.loads"): "JSON, in a file whose checksum was compared",
    ("streamadapt/state/pack.py", "safetensors.torch.load"): "safetensors, its checksum compared",
    ("streamadapt/config/tables.py", "tomllib.loads"): "TOML, the operator's own",
    ("streamadapt/config/overrides.py", "tomllib.loads"): "TOML, the operator's own",
    ("streamadapt/config/secret_files.py", "tomllib.loads"): "TOML, the operator's own",
    (
        "streamadapt/learners/tta/samples.py",
        "zipfile.ZipFile",
    ): "one member, by its name, into memory, bounded by its header",
    ("streamadapt/state/river_pickle.py", "super().load"): "the guarded unpickler",
    ("streamadapt/state/river_pickle.py", "_Unpickler"): "the guarded unpickler",
    ("streamadapt/state/river_pickle.py", "_Unpickler().load"): "the guarded unpickler",
    (
        "streamadapt/state/river_allowed.py",
        "importlib.import_module",
    ): "of a name that is on the unpickler's lists",
    ("streamadapt/models/weights.py", "json.loads"): "a safetensors header, bounded first",
    ("streamadapt/models/weights.py", "load"): "safetensors, from memory",
    (
        "connectors/streamadapt_connectors/codecs/repeated_keys.py",
        "json.loads",
    ): "JSON that msgspec has taken, bounded first",
    (
        "connectors/streamadapt_connectors/codecs/json_codec.py",
        "json.loads",
    ): "JSON that msgspec refused, bounded first",
    (
        "streamadapt/engine/partition.py",
        "self.clocks[].load",
    ): "two plain values of a checkpoint, its checksum compared",
    (
        "connectors/streamadapt_connectors/files/reading.py",
        "gzip.GzipFile",
    ): "a stream, line by bounded line",
}
IMPORTS: dict[tuple[str, str], str] = {
    ("streamadapt/app/warming.py", "multiprocessing"): "its own processes: names of kernels",
    ("streamadapt/app/demo/broker.py", "ctypes"): "above",
    ("streamadapt/app/demo/broker.py", "subprocess"): "above",
    ("streamadapt/app/demo/cgm.py", "gzip"): "above",
    ("streamadapt/app/demo/cgm.py", "importlib"): "files of an installed package",
    ("streamadapt/app/commands.py", "importlib"): "the template, a file of this package",
    ("streamadapt/app/demo/engine.py", "subprocess"): "above",
    ("streamadapt/app/demo/view.py", "subprocess"): "a type",
    ("streamadapt/models/builtin.py", "importlib"): "above",
    ("streamadapt/state/folder.py", "shutil"): "removes checkpoints; unpacks nothing",
    ("streamadapt/kernel_folder.py", "shutil"): "removes compiled code; unpacks nothing",
    ("streamadapt/compiled.py", "importlib"): "versions of installed packages",
    ("streamadapt/learners/river.py", "importlib"): "above",
    ("streamadapt/config/registry.py", "importlib"): "above",
    ("streamadapt/learners/tta/samples.py", "zipfile"): "above",
    ("streamadapt/state/river_pickle.py", "pickle"): "the guarded unpickler",
    ("streamadapt/state/river_allowed.py", "importlib"): "above",
    ("connectors/streamadapt_connectors/files/reading.py", "gzip"): "above",
}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{name_of(node.func)}()"
    if isinstance(node, ast.Subscript):
        return f"{name_of(node.value)}[]"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(tree: ast.AST) -> set[str]:
    """Return suspicious calls, and suspicious names that are passed on without a call
    (``map(pickle.loads, ...)``)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(
            getattr(node, "ctx", None), ast.Load
        ):
            name = name_of(node)
            if name.rpartition(".")[2] in SUSPICIOUS and name != "re.compile":
                found.add(name)
    return found


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        found |= {
            module
            for module in MODULES
            for name in names
            if name == module or name.startswith(f"{module}.")
        }
    return found


def seen(root: Path) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    called, imported = set(), set()
    for path in (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))):
        place, tree = path.relative_to(root).as_posix(), ast.parse(path.read_text())
        called |= {(place, name) for name in calls(tree)}
        imported |= {(place, name) for name in imports(tree)}
    return called, imported


def test_every_load_path_is_on_the_list() -> None:
    called, imported = seen(ROOT)
    assert called - set(CALLS) == set(), (
        "a new reader: add it here with its reason, and to tests/test_hostile.py"
    )
    assert imported - set(IMPORTS) == set(), "a module that can load code from data"
    assert all(CALLS.values())
    assert all(IMPORTS.values())


def test_every_listed_call_still_exists() -> None:
    called, imported = seen(ROOT)
    assert set(CALLS) - called == set()
    assert set(IMPORTS) - imported == set()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.loads(x)", "from pickle import loads\nloads(x)",
        "import pickle as p\np.load(f)", "list(map(torch.load, files))",
        "np.load(f, allow_pickle=True)", "eval(x)", "exec(x)", "load = builtins.eval",
        "import yaml\nyaml.load(x)", "zipfile.ZipFile(x).extractall()",
        "importlib.import_module(x)", "joblib.load(x)", "onnxruntime.InferenceSession(x)",
        "options.register_custom_ops_library(x)", "torch.export.load(x)", "torch.jit.load(x)",
        "torch.ops.load_library(x)", "import shelve", "from torch import hub",
        "from torch.export import load as take", "import torch.package",
    ],
)  # fmt: skip
def test_a_new_reader_would_be_detected(code: str, tmp_path: Path) -> None:
    (tmp_path / "streamadapt").mkdir()
    (tmp_path / "streamadapt" / "new.py").write_text(code)
    called, imported = seen(tmp_path)
    assert called | imported
