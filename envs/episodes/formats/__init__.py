"""Other software's formats: each module writes episodes in one, and reads them where that makes sense.

    genieredux   the layout of the paper's published code: JPEG frames, lossy, without the first frame
    minari       Minari 0.5 (Farama), one data set a game: lossless both ways
    lerobot      LeRobotDataset v3.0 (Hugging Face): PNG frames in Parquet, write only

`envs.episodes.formats.convert` chooses among them. An export appears whole or not at all; an import that was stopped goes on
where it was.
"""
