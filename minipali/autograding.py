"""nbgrader's grading step, done by the class's own marking instead of by running the notebook.

`course.py build --nbgrader` writes an nbgrader_config.py that names `Mark`. nbgrader runs students'
cells and its checks in one process, where the first can change the second. Here the checks' cells
are not run: they get the outcome of `minipali.classroom`, an error where it is not *correct*.
"""

from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_output

from minipali.checks.engine import CORRECT
from minipali.classroom import marked_apart


class Mark(Preprocessor):
    """Fills the outputs by which nbgrader gives points: an error is none, other text is all."""

    enabled = True

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        stem = resources["nbgrader"]["notebook"]
        outcomes = {one.name: one for one in marked_apart([cell.source for cell in code], stem)}
        for cell in code:
            given = cell.metadata.get("nbgrader", {})
            if not given.get("grade"):
                continue
            outcome = outcomes[given["grade_id"].removeprefix(CHECK)]
            if outcome.status == CORRECT:
                cell.outputs = [new_output("stream", name="stdout", text=f"{outcome}\n")]
            else:
                cell.outputs = [
                    new_output(
                        "error",
                        ename=outcome.status,
                        evalue=outcome.message,
                        traceback=[str(outcome)],
                    )
                ]
        return nb, resources


CHECK = "check-"  # and the piece: nbgrader's name of a cell that gives points
