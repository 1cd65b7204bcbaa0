"""The grid against the same probes trained one by one with PyTorch, on the same features."""

import functools

import jax
import numpy as np
import pytest
import torch

from configs import probe as probe_config
from musicssl.features.rows import Stored
from musicssl.probing import grid, metrics, tasks
from musicssl.probing.grid import Protocol, Split
from tests.benchmarks import probe_memory

WIDTH, CLASSES = 24, 5
torch.set_num_threads(1)  # models this small only lose by more


def features(seed: int, windows: int, mixed: int = 1, spread: float = 0.5) -> Split:
    """Noise around one centre a class in the last of `mixed` rows; two windows an item."""
    centres = np.random.default_rng(99).standard_normal((CLASSES, WIDTH)) * spread
    random = np.random.default_rng(seed)
    item = np.arange(windows) // 2
    labels = random.integers(0, CLASSES, item.max() + 1).astype(np.int32)
    x = random.standard_normal((1, mixed, windows, WIDTH))
    x[0, -1] += centres[labels[item]]
    return grid.split_of(x.astype(np.float16), labels[item], item, labels)


def item_mean(outputs: np.ndarray, item: np.ndarray) -> np.ndarray:
    return np.stack([outputs[item == i].mean(0) for i in range(item.max() + 1)])


def torch_probe(
    protocol: Protocol, train: Split, validation: Split, test: Split, rate: float, seed: int
) -> tuple[float, float]:
    """(best validation accuracy, its test accuracy) of MARBLE's loop, in plain PyTorch."""
    torch.manual_seed(seed)
    x, y = (
        torch.from_numpy(np.asarray(train.x[0, 0], "f4")),
        torch.from_numpy(np.array(train.y)).long(),
    )
    net = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, protocol.hidden),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(protocol.hidden, CLASSES),
    )
    optimizer = torch.optim.Adam(net.parameters(), rate)
    halve = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=protocol.plateau
    )

    def score(split: Split) -> float:
        net.eval()
        with torch.no_grad():
            outputs = net(torch.from_numpy(np.asarray(split.x[0, 0], "f4"))).numpy()
        net.train()
        return float(np.mean(item_mean(outputs, np.asarray(split.item)).argmax(1) == split.labels))

    best, kept, waited = -1.0, -1.0, 0
    for _ in range(protocol.epochs):
        for rows in torch.randperm(len(y)).split(protocol.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        now = score(validation)
        halve.step(now)
        waited += 1
        if now > best:
            best, kept, waited = now, score(test), 0
        if waited >= protocol.patience:
            break
    return best, kept


def test_scores_match_pytorchs_within_the_spread_of_seeds() -> None:
    protocol = Protocol("ce", CLASSES, hidden=64, epochs=40, plateau=3, patience=8)
    train, validation, test = (features(i, n) for i, n in ((0, 300), (1, 200), (2, 400)))
    rates = [5e-4, 5e-3]
    seeds = np.arange(4)
    fitted = grid.fit(
        protocol,
        metrics.monitor_accuracy,
        train,
        validation,
        np.array(rates, np.float32),
        seeds,
    )
    outputs = np.asarray(grid.predict(fitted.params, test))  # [1, s, r, i, c]
    for r, rate in enumerate(rates):
        mine = np.array([metrics.accuracy(test.labels, outputs[0, s, r]) for s in seeds])
        theirs = np.array(
            [torch_probe(protocol, train, validation, test, rate, int(s)) for s in seeds]
        )
        error = np.sqrt((mine.var(ddof=1) + theirs[:, 1].var(ddof=1)) / len(seeds))
        assert abs(mine.mean() - theirs[:, 1].mean()) < 3 * error + 0.005
        monitored = np.asarray(fitted.score)[0, :, r]
        assert abs(monitored.mean() - theirs[:, 0].mean()) < 0.03
        assert mine.mean() > 0.5  # chance is 0.2


def dropout_masks(key: jax.Array, rows: int, whole: bool, batch: int) -> np.ndarray:
    """What the grid keeps of a batch's rows, drawn piece after piece if samples are whole."""
    keys, size = [key], rows
    if whole:
        size = 2 * batch
        keys = [jax.random.fold_in(key, piece) for piece in range(-(-rows // size))]
    bits = np.concatenate([jax.random.bits(k, (size, 16), np.uint16) for k in keys])
    return (bits[:rows] < 52429) / np.float32(52429 / 65536)


def one_epoch_in_torch(
    protocol: Protocol, params: dict, train: Split, keys: jax.Array
) -> dict[str, np.ndarray]:
    """The same batches and dropout masks through torch.optim.Adam.

    Samples of several rows are files, as MARBLE's DataLoader has them: their rows are stacked.
    """
    tensors = {
        k: torch.from_numpy(np.array(v[0, 0, 0])).requires_grad_() for k, v in params.items()
    }
    x, y = (torch.from_numpy(np.array(a)) for a in (train.x[0].astype("f4"), train.y))
    of_file = [np.flatnonzero(np.asarray(train.item) == i) for i in range(len(train.labels))]
    optimizer = torch.optim.Adam(tensors.values(), 1e-2)
    key = jax.random.fold_in(keys[0], 0)
    whole = len(train.start) > 0
    for index, (chosen, weight) in enumerate(zip(*grid._order(key, train, protocol), strict=True)):
        chosen = np.asarray(chosen)[np.asarray(weight) > 0]
        rows = np.concatenate([of_file[i] for i in chosen]) if whole else chosen
        features = torch.vstack([x[:, row][None] for row in rows])  # [rows, m, d]
        dropout_key = jax.random.fold_in(key, index)
        keep = torch.from_numpy(dropout_masks(dropout_key, len(rows), whole, protocol.batch))
        z = torch.einsum("m,bmd->bd", torch.softmax(tensors["mix"], 0), features)
        z = torch.relu(z @ tensors["w1"] + tensors["b1"]) * keep
        z = z @ tensors["w2"] + tensors["b2"]
        optimizer.zero_grad()
        if protocol.loss == "ce":
            torch.nn.functional.cross_entropy(z, y[rows].long()).backward()
        else:
            torch.nn.functional.binary_cross_entropy_with_logits(z, y[rows]).backward()
        optimizer.step()
    return {k: v.detach().numpy() for k, v in tensors.items()}


def epoch_as_in_torch(protocol: Protocol, train: Split) -> None:
    """Trains an epoch with the grid and with PyTorch, and compares every parameter."""
    keys = jax.vmap(jax.random.key)(np.array([3]))
    start = grid.initial(keys[0], WIDTH, train.x.shape[1], protocol)
    params = jax.tree.map(lambda p: p[None, None, None], start)
    zeros = jax.tree.map(np.zeros_like, params)
    rates = np.full((1, 1, 1), 1e-2, np.float32)
    epoch = jax.jit(functools.partial(grid._epoch, protocol))
    after, _ = epoch(train, keys, params, (zeros, zeros), rates, 0)
    held = train
    if isinstance(train.x, Stored):
        held = train._replace(x=train.x.whole())
    wanted = one_epoch_in_torch(protocol, params, held, keys)
    assert set(after) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(np.asarray(after[name])[0, 0, 0], value, atol=2e-5)
        assert np.abs(value - np.asarray(params[name])[0, 0, 0]).max() > 1e-3


def test_an_epoch_of_the_weighted_sum_is_pytorchs_to_rounding() -> None:
    train = features(0, 150, mixed=3)  # a batch of 22 comes last
    epoch_as_in_torch(Protocol("ce", CLASSES, hidden=16), train)


def whole_files(sizes: np.ndarray, stored: bool = False) -> Split:
    """Files of so many windows each, with tags; each is a sample with all of its windows."""
    random = np.random.default_rng(4)
    item = np.repeat(np.arange(len(sizes)), sizes)
    labels = (random.random((len(sizes), CLASSES)) < 0.4).astype(np.float32)
    x = random.standard_normal((3, len(item), WIDTH)).astype(np.float16)
    start = np.cumsum(sizes) - sizes
    x = Stored(tuple(x), np.arange(len(item))) if stored else x[None]
    return grid.split_of(x, labels[item], item, labels, start)


@pytest.mark.parametrize("stored", [False, True])
def test_a_batch_is_64_files_with_all_their_windows(stored: bool) -> None:
    sizes = np.random.default_rng(5).integers(1, 12, 150)
    sizes[7], sizes[8:20] = 300, 1  # one has more windows than others have together
    epoch_as_in_torch(Protocol("bce", CLASSES, hidden=16), whole_files(sizes, stored))


def test_files_of_one_window_are_trained_on_as_single_windows() -> None:
    """The same order, and the same values where there is no dropout, whose keys are a piece's."""
    ones = whole_files(np.ones(150, int))
    alone = ones._replace(start=ones.start[:0])
    protocol = Protocol("bce", CLASSES, hidden=0, epochs=3)
    rates, seeds = np.array([1e-2], np.float32), np.array([1, 2])
    fits = [
        grid.fit(protocol, metrics.monitor_roc_auc, split, alone, rates, seeds)
        for split in (ones, alone)
    ]
    for mine, theirs in zip(*map(jax.tree.leaves, fits), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_seeds_whose_batches_differ_in_size_do_not_touch_each_other() -> None:
    train = whole_files(np.random.default_rng(6).integers(1, 30, 40))
    protocol = Protocol("bce", CLASSES, hidden=16, batch=8, epochs=2)
    rates, monitor = np.array([1e-3, 1e-2], np.float32), metrics.monitor_roc_auc
    together = grid.fit(protocol, monitor, train, train, rates, np.array([1, 2]))
    alone = grid.fit(protocol, monitor, train, train, rates[1:], np.array([2]))
    for mine, theirs in zip(*map(jax.tree.leaves, (together.params, alone.params)), strict=True):
        np.testing.assert_allclose(mine[0, 1, 1], theirs[0, 0, 0], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("emomusic", 8),
        ("mtg_instrument", 225),
        ("mtg_moodtheme", 156),
        ("mtg_genre", 509),
        ("mtg_top50", 503),
        ("giantsteps_key", 58),  # of 3,687 windows, which are files of their own
        ("gtzan_genre", 7),
        ("magnatagatune", 293),
        ("nsynth_pitch", 4519),
        ("gtzan_beat", 7),
    ],
)
def test_updates_of_an_epoch_on_the_published_sizes(name: str, updates: int) -> None:
    train = probe_memory.shaped(tasks.TASKS[name], 0, 1, held=True)
    batch = probe_config.get_config().batch_size
    protocol = Protocol("bce", 1, batch=batch, crop=500 if name == "gtzan_beat" else 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    order = jax.eval_shape(lambda key, split: grid._order(key, split, protocol), key, train)
    assert len(order.rows) == updates


def test_every_row_is_visited_once_an_epoch() -> None:
    train = features(0, 150)
    rows, weights = grid._order(jax.random.key(0), train, Protocol("ce", CLASSES))
    rows, weights = np.asarray(rows), np.asarray(weights)
    assert sorted(rows[weights > 0].tolist()) == list(range(150))
    again, _ = grid._order(jax.random.key(1), train, Protocol("ce", CLASSES))
    assert (np.asarray(again) != rows).any()


def test_crops_stay_inside_their_clip() -> None:
    rows = 100
    start = np.array([0, 40, 45])  # clips of 40, 5 and 55 rows
    x = np.zeros((1, 1, rows, WIDTH), np.float16)
    train = grid.split_of(x, np.zeros((rows, 1), np.float32), start=start)
    protocol = Protocol("bce", 1, batch=2, crop=20)
    clip = np.searchsorted(start, np.arange(rows), side="right") - 1
    first = set()
    for seed in range(20):
        chosen, weight = grid._order(jax.random.key(seed), train, protocol)
        chosen, weight = (np.asarray(a).reshape(-1, 20) for a in (chosen, weight))
        real = weight.sum(1) > 0
        for crop, inside in zip(chosen[real], weight[real] > 0, strict=True):
            assert len(set(clip[crop[inside]])) == 1
            assert inside.sum() == (5 if clip[crop[0]] == 1 else 20)
            first.add(int(crop[0]))
        assert real.sum() == 3
    assert len(first) > 10


def test_halving_follows_torchs_scheduler() -> None:
    protocol = Protocol("ce", CLASSES, plateau=2)
    scores = [0.1, 0.2, 0.2, 0.20001, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, -0.5]
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, 2)
    rates = np.full((1, 1, 1), 1e-2, np.float32)
    plateau = np.full((1, 1, 1), -np.inf, np.float32), np.zeros((1, 1, 1), np.int32)
    seen = set()
    for score in scores:
        scheduler.step(score)
        now = np.full((1, 1, 1), score, np.float32)
        rates, plateau = grid._halve(protocol, rates, plateau, now)
        wanted = optimizer.param_groups[0]["lr"]
        assert float(rates[0, 0, 0]) == pytest.approx(wanted)
        seen.add(wanted)
    assert len(seen) >= 3


def test_a_model_does_not_depend_on_what_is_trained_beside_it() -> None:
    protocol = Protocol("ce", CLASSES, hidden=16, epochs=12, patience=4)
    train, validation = features(0, 200), features(1, 100)
    rates, seeds = np.array([1e-3, 3e-2], np.float32), np.array([1, 2])
    fit = grid.fit
    together = fit(protocol, metrics.monitor_accuracy, train, validation, rates, seeds)
    alone = fit(protocol, metrics.monitor_accuracy, train, validation, rates[1:], seeds[:1])
    assert int(alone.epochs) <= int(together.epochs)
    assert float(together.score[0, 0, 1]) == pytest.approx(float(alone.score[0, 0, 0]), abs=0.021)
    assert int(together.epoch[0, 0, 1]) == int(alone.epoch[0, 0, 0])


def test_stopping_keeps_the_best_epoch() -> None:
    protocol = Protocol("ce", CLASSES, hidden=16, epochs=30, patience=3)
    train, validation = features(0, 200), features(1, 100)
    rates = np.array([1e-2], np.float32)
    monitor = metrics.monitor_accuracy
    fitted = grid.fit(protocol, monitor, train, validation, rates, np.array([5]))
    assert int(fitted.epochs) < 30
    assert int(fitted.epoch[0, 0, 0]) == int(fitted.epochs) - 1 - 3
    outputs = np.asarray(grid.predict(fitted.params, validation))[0, 0, 0]
    again = metrics.accuracy(validation.labels, outputs)
    assert again == pytest.approx(float(fitted.score[0, 0, 0]), abs=1e-6)


def test_item_outputs_average_windows_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "BLOCK", 16)
    split = features(3, 101)
    protocol = Protocol("ce", CLASSES, hidden=8)
    params = grid.initial(jax.random.key(0), WIDTH, 1, protocol)
    stacked = jax.tree.map(lambda p: p[None, None, None], params)
    mine = np.asarray(grid.item_outputs(stacked, split))[0, 0, 0]
    plain = np.asarray(grid.apply(params, split.x[0].astype("f4")))
    np.testing.assert_allclose(mine, item_mean(plain, np.asarray(split.item)), atol=1e-5)


def test_a_linear_probe_and_both_other_losses_learn() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 1, 256, WIDTH)).astype(np.float16)
    target = x[0, 0, :, :2].astype("f4")
    rates, seeds = np.array([1e-2], np.float32), np.array([1])
    cases = (
        ("mse", target, metrics.monitor_r2, 0.9),
        ("bce", (target > 0).astype("f4"), metrics.monitor_roc_auc, 0.95),
    )
    for loss, y, monitor, least in cases:
        split = grid.split_of(x, y)
        protocol = Protocol(loss, 2, hidden=0, epochs=60, patience=60)
        fitted = grid.fit(protocol, monitor, split, split, rates, seeds)
        assert set(fitted.params) == {"mix", "w2", "b2"}
        assert float(fitted.score[0, 0, 0]) > least


def test_sizes_that_differ_are_refused() -> None:
    x = np.zeros((1, 1, 5, WIDTH), np.float16)
    with pytest.raises(ValueError, match="5 feature rows, 4 labels"):
        grid.split_of(x, np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="windows of item 7"):
        grid.split_of(x, np.zeros(5, int), np.array([0, 1, 2, 3, 7]), np.zeros(3, int))


@pytest.mark.parametrize(("task", "source"), [("mtg_genre", "sum"), ("gtzan_beat", "6")])
def test_the_largest_tasks_fit_in_24_gib(task: str, source: str) -> None:
    features, programs = probe_memory.needed(task, source, cores=4)
    rows = sum(probe_memory.WINDOWS[task]) * (12 if source == "sum" else 1)
    assert features > rows * 768 * 2 / 2**30  # float16, of all three splits
    assert programs > 4 * 768 * 512 * 4 / 2**30  # four models at a time
    assert features + programs + 1 < 24


def test_frames_that_are_not_held_fit_too() -> None:
    features, programs = probe_memory.needed("gtzan_beat", "sum", cores=4)
    assert features == 0
    batch = 64 * 500 * 12 * 768 * 2 / 2**30
    assert 2 * batch < programs < 12
