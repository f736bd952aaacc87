"""The two user studies of appendix E: made, served as a page, and scored."""
