"""Formats of other software: each module writes episodes in one, or reads them if it is lossless.

    genieredux   the layout of the paper's published code: JPEG frames, without the first frame
    minari       Minari 0.5 (Farama), one data set per game: lossless both ways
    lerobot      LeRobotDataset v3.0 (Hugging Face): PNG frames in Parquet, write only

`envs.episodes.formats.convert` selects among them. An export appears completely or not at all; an
interrupted import resumes.
"""
