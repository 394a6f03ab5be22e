"""The help of a command: its options by what they are about, and an example at the end."""

import click

_FEW = 12  # options that need no groups
_OWN = "Options"
_GROUPS = {  # the names of the options' parameters
    "Model": "weights model_family model_name num_classes alpha beta output_stride",
    "Images": "test_dataset metadata_root dataset_name split input_size classes",
    "Maps": "localization_method target map_size pc1_range map_names",
    "Boxes and scores": "cub_root iou_thr cam_curve_interval eval_size resize_maps threshold"
    " allow_boxes_beyond missing_as_miss clip contours threshold_from",
    "Intervals and comparisons": "predictions per_class bootstrap confidence seed compare"
    " compare_predictions",
    _OWN: "",
    "How to compute": "batch_size num_workers device precision channels_last strict compile"
    " checkpoint",
}


class GroupedCommand(click.Command):
    """A command whose many options are listed in groups, those of its own under "Options"."""

    def format_options(self, ctx, formatter):
        """Write the options, of each group that has three or more in a section of its own."""
        shown = [(p.name, p.get_help_record(ctx)) for p in self.get_params(ctx)]
        shown = [(name, record) for name, record in shown if record is not None]
        groups = {title: names.split() for title, names in _GROUPS.items()}
        sizes = {title: sum(n in names for n, _ in shown) for title, names in groups.items()}
        title_of = {
            name: title
            for title, names in groups.items()
            if sizes[title] >= 3 and len(shown) >= _FEW
            for name in names
        }
        for title in groups:
            records = [record for name, record in shown if title_of.get(name, _OWN) == title]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def with_example(command: click.Command, name: str, example: str) -> click.Command:
    """Return the command with its options in groups and an example below them."""
    return GroupedCommand(
        command.name,
        callback=command.callback,
        params=command.params,
        help=command.help,
        epilog=f"\b\nExample:\n  cba-fast {name} {example}",
    )
