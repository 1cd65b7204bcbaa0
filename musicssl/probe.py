"""Evaluate an encoder: python -m musicssl.probe --config=configs/probe.py --config.encoder=DIR

Features of every layer are extracted once and cached. For each task, a grid of probes (layers x
learning rates x seeds) is trained on them, and the best by validation is tested. Writes
results.json, results.md and pictures. --compare A B C compares directories of such results instead,
and writes compare.md, compare.html (a page with tables that can be sorted) and compare.csv. Exit
codes: 0 complete, 2 a request that cannot be met, 74 a disk or a bucket did not answer.
"""

from absl import flags, logging

from musicssl import command, environment, host, paths
from musicssl.probing import report, session
from musicssl.runtime import compile_cache, distributed
from musicssl.study import leaderboard


def define_flags() -> None:
    command.define_config(paths.of_product("configs/probe.py"))
    flags.DEFINE_string("compare", None, "directories of results to compare")


def main(argv: list[str]) -> None:
    compare, config = flags.FLAGS.compare, flags.FLAGS.config
    with command.refusing():
        if compare:
            folders = [part for part in [*compare.split(","), *argv[1:]] if part]
            held = [host.path(paths.anywhere(x)) for x in folders]
            out = host.path(config.results or "results/compare")
            print(report.compare(held, out))
            print(leaderboard.write(held, out))
            return
        command.refuse_arguments(argv)
        if paths.PYTHON in f"{config.encoder},{config.beside}":
            environment.share_gpu()
        distributed.start()
        compile_cache.keep()
        environment.require_devices()
        with distributed.together():
            print(session.run(config), flush=True)


if __name__ == "__main__":
    command.run(main, define_flags, arguments=True, verbosity=logging.ERROR)  # no TFDS warnings
