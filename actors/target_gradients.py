"""Target gradients at each checkpoint, with which rows are matched; one actor computes them once into safetensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raysift.actors.checkpointed import Checkpoint, CheckpointedModel
from raysift.actors.target_files import TargetFiles
from raysift.errors import DataError, ModelError
from raysift.evaluation.examples import reference_answer
from raysift.pool.given_input import conversation_of
from raysift.records import ID, Example, Pair
from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.gradients.collect import RowGradients
    from raysift.gradients.null_columns import NullPlan
    from raysift.gradients.null_sums import NullRows
    from raysift.gradients.preference import Targets, TokenExample, Write
    from raysift.gradients.rows import TokenRow

PLAIN = AdamSettings(form="none")
CHECKED_ROWS = 3
CHECKED_NUMBERS = 2**29  # in their gradients together: 2 GiB; for larger adapters fewer rows are checked, or none
TOLERANCES = {4: 0.01, 2: 0.2}  # relative, by bytes of the narrowest weight


class TargetGradients:
    """Turns preference pairs (ROSE) or examples (LESS) into one vector per subtask and checkpoint.

    Targets' gradients are plain: the optimizer's moments (`adam`) apply only to rows of the pool, here those of null targets.
    With `files`, a folder, vectors go there and are not kept, and checkpoints that are done there are not computed again.
    """

    def __init__(
        self,
        model: Any,
        checkpoints: Sequence[Checkpoint],
        projection: ProjectionSettings,
        adam: AdamSettings = PLAIN,
        files: Location | None = None,
        **loading: Any,
    ) -> None:
        self.model = CheckpointedModel(model, checkpoints, adam, **loading)
        self.null_rows: list[list[int]] = []
        """Ids of the rows that the null columns last computed are made of, by replicate; none for signs."""
        self.deviation: float | None = None
        """How far the gradients last computed deviate from autograd's (see `check`)."""
        self.project(projection)
        self.files = TargetFiles(files, self.hash) if files else None

    def project(self, projection: ProjectionSettings) -> None:
        """Project gradients with another projection from now on."""
        from raysift.store.projection import Projection

        self.sinks = self.model.projections(projection)
        self.hash = Projection(projection, self.model.layout).hash

    def check(self, rows: Sequence[TokenRow]) -> float | None:
        """How far gradients at the first checkpoint are from autograd's; raises if the hooks misread the model.

        The shortest rows share a batch, as in a run. Among those padded in it the smallest deviation counts, because
        rounding decides the gradient of a loss that is almost zero. None if no row has a gradient, or if memory is too
        small to check one.
        """
        gradients = self.model.at(0, self.sinks[0])
        count = min(CHECKED_ROWS, CHECKED_NUMBERS // self.model.layout.total)
        shortest = sorted((row for row in rows if row.n_labels), key=lambda row: (len(row), row.id))[:count]
        deviations = gradients.deviations(shortest) if shortest else {}
        if not deviations:
            return None
        padded = [row.id for row in shortest if len(row) < len(shortest[-1]) and row.id in deviations]
        found = min(deviations[number] for number in padded or deviations)
        narrowest = min(weight.element_size() for weight in gradients.model.parameters() if weight.is_floating_point())
        if not found <= TOLERANCES.get(narrowest, TOLERANCES[4]):
            raise ModelError(
                f"gradients: those of {len(deviations)} target rows deviate by {found:.2g} at least, relative to autograd's: this "
                "model uses its adapter's layers in a way that row gradients do not follow. Train other modules "
                "(train.lora_targets), or take another model."
            )
        return found

    def from_pairs(
        self,
        pairs: Sequence[Pair],
        preference: PreferenceSettings,
        targets: TargetSettings,
        end_prompt: bool,
        keep_units: bool = False,
        null: NullPlan | None = None,
    ) -> list[Targets]:
        """The `raysift.gradients.preference.Targets` at each checkpoint, from preference pairs; with `null` also null columns."""
        from raysift.gradients.null_columns import ROWS
        from raysift.gradients.null_sums import NullSigns
        from raysift.gradients.preference import preference_targets

        tokens = [self.model.encode_pair(number, pair, end_prompt) for number, pair in enumerate(pairs)]
        self.deviation = self.check([pair.chosen for pair in tokens])
        nulls: NullSigns | NullRows | None = None
        if null:
            nulls = self._null_rows(null) if null.kind == ROWS else NullSigns(null.columns, dict(enumerate(null.keys)))

        def at(gradients: RowGradients, write: Write | None) -> Targets:
            return preference_targets(gradients, tokens, preference, targets, keep_units, write, nulls)

        return self._at_each([pair.subtask for pair in tokens], at, null)

    def from_examples(
        self,
        examples: Sequence[Example],
        targets: TargetSettings,
        keep_units: bool = False,
        null: NullPlan | None = None,
    ) -> list[Targets]:
        """The `Targets` at each checkpoint from the cross-entropy of the examples' reference answers; with `null` also null
        columns, of rows that are taken as the pool's rows are."""
        from raysift.gradients.preference import cross_entropy_targets

        tokens = [self._encode(number, example) for number, example in enumerate(examples)]
        self.deviation = self.check([example.row for example in tokens])
        rows = self._null_rows(null) if null else None

        def at(gradients: RowGradients, write: Write | None) -> Targets:
            return cross_entropy_targets(gradients, tokens, targets, keep_units, write, rows)

        return self._at_each([example.subtask for example in tokens], at, null)

    def _null_rows(self, null: NullPlan) -> NullRows:
        """The first rows drawn that have a token that counts, dealt out to the null columns."""
        from raysift.gradients.null_columns import deal
        from raysift.gradients.null_sums import NullRows

        usable: dict[int, TokenRow] = {}
        for row in null.candidates:
            if len(usable) == null.most:
                break
            with contextlib.suppress(DataError):  # the template refuses it, as it will where the pool is passed
                tokens = self.model.encode(row[ID], conversation_of(row))
                if tokens.n_labels:
                    usable[tokens.id] = tokens
        dealt = deal(list(usable), null.sizes, null.columns)
        self.null_rows = [sorted({id_ for ids in own.values() for id_ in ids}) for own in dealt]
        by_subtask = {name: [[usable[id_] for id_ in own[name]] for own in dealt] for name in null.sizes}
        return NullRows(null.columns, by_subtask)

    def _at_each(
        self,
        subtasks: Sequence[str],
        targets_at: Callable[[RowGradients, Write | None], Targets],
        null: NullPlan | None,
    ) -> list[Targets]:
        """The targets at each checkpoint, one after the other. With `files`, each is on disk before the next begins."""
        found = []
        if self.files:
            self.files.nulls = null.columns if null else 0
        for index, checkpoint in enumerate(self.model.checkpoints):
            width = self.sinks[index].width
            done = self.files.done(checkpoint, width) if self.files else None
            if done is None:
                gradients = self.model.at(index, self.sinks[index])
                if self.files is None:
                    done = targets_at(gradients, None)
                else:
                    with self.files.writing(checkpoint, sorted(set(subtasks)), width) as write:
                        done = targets_at(gradients, write)
                    self.files.account(checkpoint, done)
            found.append(done)
        return found

    def pulls(self, messages: Sequence[dict[str, str]], targets: Sequence[Any]) -> list[dict[int, float]]:
        """Per checkpoint, the cosine of one row's direction with each pair or example; `targets` need their `units`."""
        import numpy as np

        row, found = self.model.encode(0, messages), []
        for index, target in enumerate(targets):
            result = self.model.at(index, self.sinks[index]).run([row])
            if result.set_aside:
                raise DataError(f"explain: the row has no gradient: {result.set_aside[0].message}.")
            direction = result.vectors[0] / np.linalg.norm(result.vectors[0])
            cosines = target.units @ direction
            found.append({member.id: float(c) for member, c in zip(target.members, cosines, strict=True)})
        return found

    def _encode(self, number: int, example: Example) -> TokenExample:
        from raysift.gradients.preference import TokenExample

        answer = reference_answer(example)
        if answer is None:
            raise DataError(f"targets: example '{example.id}' has no right answer, so it has no loss to lower.")
        row, cut = self.model.encode_answer(number, example, answer)
        return TokenExample(row, example.subset or example.task, cut)
