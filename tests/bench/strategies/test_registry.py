"""How strategies are named: built in, by entry point, as `module:Name`, with parameters; and what is refused."""

import numpy as np
import pytest

from bench.strategies.pools import made_pool
from egal_bench.config import Config
from egal_bench.errors import BenchError, UserCodeError
from egal_bench.strategies import available, find, registry, strategy


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Let what a test registers disappear with it."""
    available()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


def test_unknown_strategy_is_answered_with_the_nearest():
    with pytest.raises(BenchError, match=r"unknown strategy 'entrpy': did you mean 'entropy'\?"):
        find("entrpy")


def test_specification_gives_the_canonical_name():
    assert find("egal(lambda=1.0)").name == "egal"
    assert find("egal(normalise=rank, lambda=0.50)").name == "egal(lambda=0.5,normalise=rank)"
    assert find("egal", Config(lambda_=2.0)).name == "egal(lambda=2)"
    assert find("random", Config(lambda_=2.0)).name == "random"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("egal(lamda=1)", "unknown parameter of egal 'lamda': did you mean 'lambda'"),
        ("egal(lambda=-1)", r"egal\(lambda=-1\): .*greater than or equal to 0"),
        ("random(k=2)", "random takes no parameters"),
        ("egal(", r"expected NAME or NAME\(parameter=value"),
    ],
)
def test_wrong_parameter_is_named(text, message):
    with pytest.raises(BenchError, match=message):
        find(text)


def test_own_strategy_is_found_by_module_and_name(user_module):
    user_module("of_a_user", """
        import numpy as np
        class Reverse:
            needs_roi = needs_features = False
            def __call__(self, pool): return np.arange(len(pool))[::-1]
        class Undeclared:
            def __call__(self, pool): return np.arange(len(pool))
        """)  # fmt: skip
    assert find("of_a_user:Reverse")(made_pool("random")).indices[0] == 29
    with pytest.raises(BenchError, match=r"set needs_roi and needs_features to True or False"):
        find("of_a_user:Undeclared")
    with pytest.raises(BenchError, match=r"no attribute 'Absent'"):
        find("of_a_user:Absent")
    with pytest.raises(BenchError, match=r"No module named 'nowhere'"):
        find("nowhere:X")


def test_decorated_strategy_takes_parameters(user_module):
    path = user_module("decorated", """
        import numpy as np
        from egal_bench import strategy
        from egal_bench.strategies import Query
        @strategy("from-end", needs={"features"}, groups={"diversity"})
        def from_end(pool, *, skip: int = 0):
            '''The last samples but `skip`.'''
            return Query(np.arange(len(pool))[::-1][skip:], np.zeros(len(pool) - skip))
        """)  # fmt: skip
    found = find("decorated:from_end(skip=3)")
    assert found.name == "decorated:from_end(skip=3)"
    assert (found.needs, found.strategy.groups) == ({"features"}, {"diversity"})
    assert found.strategy.source == str(path)
    assert found(made_pool(found)).indices.tolist() == [26, 25, 24, 23, 22]


def test_decorator_takes_the_earlier_names_of_needs():
    @strategy("mine", needs_roi=True, needs_features=True)
    def mine(pool): ...

    assert available()["mine"].needs == {"roi", "features"}


def test_unknown_need_is_answered_with_the_nearest():
    with pytest.raises(BenchError, match="unknown need of strategy 'mine' 'features_': did you mean 'features'"):
        strategy("mine", needs={"features_"})


def test_name_of_a_built_in_strategy_cannot_be_taken(user_module):
    user_module("takes_a_name", """
        from egal_bench import strategy
        @strategy("random")
        def best_of_all(pool): ...
        """)  # fmt: skip
    with pytest.raises(BenchError, match="strategy 'random' is built in: give yours another name"):
        find("takes_a_name:best_of_all")
    assert not available()["random"].source


@pytest.mark.parametrize("signature", ["pool, *, k: int", "pool, *, k=3"])
def test_parameter_without_type_or_default_is_refused(user_module, signature):
    user_module("bare", f"""
        from egal_bench import strategy
        @strategy("bare")
        def bare({signature}): ...
        """)  # fmt: skip
    with pytest.raises(BenchError, match="strategy 'bare:bare': its parameter k needs a type and a default"):
        find("bare:bare")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(broken.py, line 1\)"),
        ("import numpy\nnumpy.zeros(-1)", r"ValueError: negative dimensions are not allowed \(broken.py, line 2\)"),
        ("def mine(pool:", r"SyntaxError: .*\(broken.py, line 1\)"),
        ("class mine:\n    def __init__(self, k): ...", r"TypeError: .*missing 1 required positional argument"),
    ],
)
def test_module_that_fails_is_shown_as_the_users(user_module, text, message):
    user_module("broken", text)
    with pytest.raises(UserCodeError, match=rf"^(--strategies broken:mine|strategy 'broken:mine') raised {message}"):
        find("broken:mine")


def test_exception_inside_a_strategy_names_its_file_and_line(user_module):
    """The place is the user's own line, also where the exception was raised by a library below it."""
    user_module("failing", """
        import numpy as np
        def mine(pool):
            return np.concatenate([pool.entropy, pool.logits])
        mine.needs_roi = mine.needs_features = False
        """)  # fmt: skip
    found = find("failing:mine")
    with pytest.raises(UserCodeError, match=r"^strategy 'failing:mine' raised ValueError: .*\(failing.py, line 4\)"):
        found(made_pool(found))


@pytest.fixture
def entry_point(tmp_path, monkeypatch):
    """Return a function that installs a distribution whose module `plug` has an entry point `name`."""

    def install(name: str, text: str) -> None:
        (tmp_path / "plug.py").write_text(text)
        info = tmp_path / "plug-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[egal_bench.strategies]\n{name} = plug:last\n")
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.delitem(__import__("sys").modules, "plug", raising=False)
    return install


LAST = "import numpy as np\ndef last(pool): return np.arange(len(pool))[::-1]\n"


def test_strategy_is_found_by_entry_point(entry_point):
    entry_point("from-plug", LAST + "last.needs_roi, last.needs_features = True, False\n")
    found = find("from-plug")
    assert found.needs == {"roi"}
    assert found(made_pool(found)).indices.tolist() == [29, 28, 27, 26, 25]
    assert "from-plug" in available()


def test_entry_point_cannot_take_the_name_of_a_built_in_strategy(entry_point):
    entry_point("entropy", LAST + "last.needs_roi, last.needs_features = True, False\n")
    assert not find("entropy").strategy.source
    assert not available()["entropy"].source


def test_entry_point_that_fails_is_shown_as_the_plugins(entry_point):
    entry_point("from-plug", "1 / 0")
    with pytest.raises(UserCodeError, match=r"^strategy 'from-plug' raised ZeroDivisionError: .*\(plug.py, line 1\)"):
        find("from-plug")


def test_listing_shows_parameters_with_bounds_and_flags():
    from egal_bench.strategies.listing import described

    lines = described(available()["egal"])
    assert [line.partition("=")[0] for line in lines] == [
        "lambda", "empty-roi", "normalise", "diverse", "area-matched", "roi",
    ]  # fmt: skip
    assert "lambda=1.0 (at least 0; flag --lambda): weight of the misalignment" in lines[0]
    assert "empty-roi=mean (zero | mean | exclude; flag --empty-roi)" in lines[1]
    assert described(available()["random"]) == []
    assert np.all([len(line.splitlines()) == 1 for line in lines])
