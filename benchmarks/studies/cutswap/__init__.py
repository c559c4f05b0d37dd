"""The study of fine-tuning: PatchCore on untuned features against CutPaste and CutSwap."""
