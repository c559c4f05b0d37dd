"""The study of image AUROC along the training of SimpleNet, before and after its present setting.

Two causes of its unsteadiness were found. An average of weights with a decay that is fixed from the
first step on still contains initial weights at the half of the training, and the BatchNorm
statistics averaged with them do not fit it: its AUROC was below 0.5 there. Constant learning rates
keep the weights moving, so that the AUROC of single steps varies.

The light setting was chosen on elpv_mono and on set 0 of the rotating bearings, which are tuning
sets; set 1 and the other data were not used. Trials on set 0 with 1000 steps of 512 patches, seed
0, where PatchCore's bank had 0.761, gave, with an average that forgets its beginning:

    constant rates, as published                           0.779 (the last step alone: 0.662)
    three times those rates, constant                      0.732 (0.535)
    three times those rates, decaying by a cosine          0.768 (0.763)
    as published, decaying                                 0.716
      and each channel standardised                        0.614
      and the features whitened                            0.489
    noise of half the deviation, twice the rates, decaying 0.795 (on elpv_mono too large)
    logistic loss, noise from 0.1 to 1 of the deviation    0.755

These are single seeds; differences below 0.03 mean little.
"""
