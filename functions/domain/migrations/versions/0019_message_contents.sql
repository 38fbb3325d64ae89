-- The content as it was accepted. jsonb writes 1e20 as an integer and -0.0 as 0.0, so a message that was read from its
-- row was not the one that was accepted, or could not be read at all.
ALTER TABLE messages ALTER COLUMN content TYPE json USING content::json;
